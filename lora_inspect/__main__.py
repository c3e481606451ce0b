"""`python -m lora_inspect`."""

from lora_inspect.cli import main

if __name__ == "__main__":
    main()
