"""`python -m lora_inspect`."""

from lora_inspect.start import main

if __name__ == "__main__":
    main()
