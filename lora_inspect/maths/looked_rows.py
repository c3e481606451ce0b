"""Which rows of a weight are looked at for what its numbers keep of a change: a rule of the weight alone."""

# Of numbers of so many bits and fewer all rows are looked at: they are what loses a change.
FEW_BITS = 8
# Of others a sixteenth is: some neighbouring rows of each group of sixteen times as many, since many small pieces take
# longer than a few. Not the same ones of each group: layers have structure in steps of powers of two.
GROUP, _STEP = 16, 7
# A weight has about so many groups where it has as many rows.
_GROUPS = 8


def looked_rows(rows: int, first: int, count: int) -> list[tuple[int, int]]:
    """Which of the rows `first` to `first` + `count` are looked at, of a weight of so many `rows`, as (start, stop).

    All together they are a sixteenth of its rows at least.
    """
    height = max(1, rows // (GROUP * _GROUPS))
    group = GROUP * height
    found = []
    for number in range(first // group, -(-(first + count) // group)):
        start = max(number * group, min(number * group + number * _STEP % GROUP * height, rows - height))
        begin, end = max(start, first), min(start + height, first + count, rows)
        if begin < end:
            found.append((begin, end))
    return found
