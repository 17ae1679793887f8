"""The links of a page in Markdown: to files, and to headings in them."""

import re


def of_page(path):
    """(file, anchor) of each link that leads to none of the web; an empty file is the page itself."""
    return [
        (link, anchor) for link, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", prose(path)) if link or anchor
    ]


def prose(path):
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def headings(path):
    """The anchors of a page's headings, as code hosts make them."""
    titles = re.findall(r"^#+ (.*)$", prose(path), flags=re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]


def check(page, link, anchor):
    """Finds that a link of a page leads somewhere."""
    target = page.parent / link if link else page
    assert target.is_file(), link
    if anchor:
        assert anchor in headings(target), f"{link}#{anchor}"
