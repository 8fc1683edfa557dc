"""What sections of the report have in common as plain text; pure."""

_LABEL_WIDTH, _AMOUNT_WIDTH, _BAR_WIDTH = 28, 18, 20


def bar_line(label: str, amount: str, percent: int) -> str:
    """What it is, its amount, and a bar of ``percent`` (0 to 100) of the full length."""
    shown = " ".join(label.split())  # a line break would look like a line of ours
    bar = "#" * -(-percent * _BAR_WIDTH // 100)
    return f"  {shown:<{_LABEL_WIDTH}} {amount:>{_AMOUNT_WIDTH}}  {bar}".rstrip()
