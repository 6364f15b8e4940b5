"""Nothing on a page is wider than the screen: waited for, since after a change of size it is drawn anew."""

WIDEST = """Math.max(...[document.documentElement, document.querySelector("[data-testid=stMain]")]
  .map(element => element.scrollWidth))"""


def fits(page, width):
    """Wait until it does; nothing scrolls sideways then."""
    page.wait_for_function(f"width => {WIDEST} <= width", arg=width)
