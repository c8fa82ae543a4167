"""Cases that the page decides: texts, languages, URLs, tags and licences."""

from __future__ import annotations

import html
import unicodedata
from typing import Final

from laion_assets.sample_crawl.drafts import NO_LICENCE, Draft, Entry, padded, picture_url
from laion_assets.sample_crawl.plan import Plan, PlannedPair, Supply
from laion_assets.sample_crawl.records import Link

MAX_TEXT: Final = 4096
MAX_URL: Final = 2048


def texts(plan: Plan, supply: Supply) -> list[Draft]:
    """Alt texts: length, entities, white space, Unicode."""
    page = Draft("https://www.texts.sample.test/alts.html", "Alt texts of every kind")
    take = supply.take
    page.refused_text("alt_missing", take().file, None, "no_alt")
    page.refused_text("alt_empty", take().file, "", "no_alt")
    page.refused_text("alt_of_spaces", take().file, " \n\u00a0 ", "no_alt")
    page.refused_text("alt_three_characters", take().file, "Cat", "alt_too_short")
    page.refused_text("alt_four_characters", take().file, "Bear", "alt_too_short")
    page.refused_text("alt_short_once_folded", take().file, "  a \n\t b  ", "alt_too_short")
    page.refused_text("alt_short_once_decoded", take().file, "&amp;&lt;&gt;&quot;", "alt_too_short")
    pair = take()
    page.refused_text("alt_over_long", pair.file, padded(pair.text, MAX_TEXT + 1), "alt_too_long")
    for pair in plan.group("long"):
        page.image("alt_of_maximum_length", pair, picture_url(pair.file))
    for number, pair in enumerate(plan.group("marked")):
        page.image(
            "alt_with_entities",
            pair,
            picture_url(pair.file),
            alt=_with_entities(pair.text) if number % 2 == 0 else _with_numbers(pair.text),
        )
    for pair in plan.group("accented"):
        alt = unicodedata.normalize("NFD", pair.text)
        page.image("alt_not_composed", pair, picture_url(pair.file), alt=alt)
    pair = take()
    alt = f"\n\t  {pair.text.replace(' ', '  ' + chr(0xA0) + chr(9) + chr(10))} \r\n"
    page.image("alt_white_space", pair, picture_url(pair.file), alt=alt)
    pair = take()
    alt = pair.text.replace(" ", " \x00\x07 \x7f ", 1)
    page.image("alt_control_characters", pair, picture_url(pair.file), alt=alt)
    pair = take()
    page.image("alt_bare_ampersand_url", pair, picture_url(pair.file) + "?a=1&b=2")
    return [page]


def languages(plan: Plan, _: Supply) -> list[Draft]:
    """Texts that are not English; the pictures are good."""
    drafts: dict[str, Draft] = {}
    for foreign in plan.foreign:
        language = foreign.language
        page = drafts.setdefault(
            language,
            Draft(f"https://www.{language}.sample.test/bilder.html", f"Pictures, {language}"),
        )
        page.refused_text(f"language_{language}", foreign.file, foreign.text, "language")
    return list(drafts.values())


def urls(_: Plan, supply: Supply) -> list[Draft]:
    """URLs that must be resolved as a browser does; all of them lead to the right picture."""
    return [*_relative_urls(supply), *_odd_urls(supply)]


def _relative_urls(supply: Supply) -> list[Draft]:
    """URLs relative to the page, or to its base."""
    take = supply.take
    site = "http://www.travel.sample.test"
    plain = Draft(f"{site}/2000/01/story.html?page=2", "Relative addresses")
    for case, src, path in (
        ("relative_same_folder", "apple.jpg", "/2000/01/apple.jpg"),
        ("relative_dot", "./pear.jpg", "/2000/01/pear.jpg"),
        ("relative_sub_folder", "pics/plum.jpg", "/2000/01/pics/plum.jpg"),
        ("relative_parent", "../fig.jpg", "/2000/fig.jpg"),
        ("relative_grandparent", "../../kiwi.jpg", "/kiwi.jpg"),
        ("relative_above_the_root", "../../../../date.jpg", "/date.jpg"),
        ("relative_root", "/img/lime.jpg", "/img/lime.jpg"),
        ("relative_query_only", "?picture=7", "/2000/01/story.html?picture=7"),
    ):
        plain.image(case, take(), site + path, src=src)
    plain.image("protocol_relative", pair := take(), picture_url(pair.file), src=_no_scheme(pair))

    folder = Draft(f"{site}/gallery/", "A page that is a folder")
    folder.image("relative_to_folder", take(), f"{site}/gallery/a.jpg", src="a.jpg")
    folder.image("relative_out_of_folder", take(), f"{site}/b.jpg", src="../b.jpg")

    elsewhere = "http://static.sample.test/shelf/"
    base = Draft("https://www.books.sample.test/a/b.html", "Base elsewhere", base=elsewhere)
    base.image("base_relative", take(), f"{elsewhere}one.jpg", src="one.jpg")
    base.image("base_parent", take(), "http://static.sample.test/two.jpg", src="../two.jpg")
    base.image("base_root", take(), "http://static.sample.test/pics/3.jpg", src="/pics/3.jpg")
    base.image("base_and_absolute", pair := take(), picture_url(pair.file))

    relative = Draft(f"{site}/x/y/z.html", "A base that is relative itself", base="../media/")
    relative.image("relative_base", take(), f"{site}/x/media/four.jpg", src="four.jpg")
    relative.image("relative_base_parent", take(), f"{site}/x/five.jpg", src="../five.jpg")
    file_base = Draft(
        f"{site}/q/r.html", "A base that names a file", base="http://cdn.sample.test/d/i.html"
    )
    file_base.image("base_is_a_file", take(), "http://cdn.sample.test/d/six.jpg", src="six.jpg")
    return [plain, folder, base, relative, file_base]


def _odd_urls(supply: Supply) -> list[Draft]:
    """Absolute URLs that must be normalised."""
    take = supply.take
    odd = Draft("https://www.odd.sample.test/index.html", "Odd addresses")
    host = "http://img.sample.test"
    for case, src, url in (
        ("query", f"{host}/show.php?id=7&size=l", f"{host}/show.php?id=7&size=l"),
        ("query_other", f"{host}/show.php?id=8&size=l", f"{host}/show.php?id=8&size=l"),
        ("fragment_dropped", f"{host}/f/seven.jpg#middle", f"{host}/f/seven.jpg"),
        ("upper_case_host", "HTTP://IMG.Sample.TEST/Upper/Case.JPG", f"{host}/Upper/Case.JPG"),
        ("default_port", "http://img.sample.test:80/p/eight.jpg", f"{host}/p/eight.jpg"),
        ("spaces_inside", f"{host}/my pictures/a b.jpg", f"{host}/my%20pictures/a%20b.jpg"),
        ("spaces_around", f"  {host}/s/nine.jpg\n", f"{host}/s/nine.jpg"),
        ("tab_and_newline_inside", f"{host}/t/t\ne\tn.jpg", f"{host}/t/ten.jpg"),
        ("backslashes", r"http:\\img.sample.test\w\eleven.jpg", f"{host}/w/eleven.jpg"),
        ("dot_segments", f"{host}/a/./b/../c/twelve.jpg", f"{host}/a/c/twelve.jpg"),
        ("unicode_path", f"{host}/früchte/äpfel.jpg", f"{host}/fr%C3%BCchte/%C3%A4pfel.jpg"),
        ("percent_encoded", f"{host}/p/%7Eme/13%20x.jpg", f"{host}/p/%7Eme/13%20x.jpg"),
        (
            "international_host",
            "http://bücher.sample.test/14.jpg",
            "http://xn--bcher-kva.sample.test/14.jpg",
        ),
    ):
        odd.image(case, take(), url, src=src)
    longest = f"{host}/long/".ljust(MAX_URL - 4, "x") + ".jpg"
    odd.image("url_of_maximum_length", take(), longest)
    return [odd]


def refused_urls(_: Plan, supply: Supply) -> list[Draft]:
    """URLs of other schemes, without a valid host, or too long."""
    page = Draft("https://www.broken.sample.test/urls.html", "Addresses that lead nowhere")
    for case, src in (
        ("scheme_data", "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJ"),
        ("scheme_file", "file:///etc/passwd"),
        ("scheme_ftp", "ftp://ftp.sample.test/pub/picture.jpg"),
        ("scheme_javascript", "javascript:void(0)"),
        ("scheme_blob", "blob:https://www.broken.sample.test/9115d58c"),
    ):
        page.refused_url(case, supply.take(), src, "url_scheme")
    for case, src in (
        ("host_with_space", "http://exa mple/picture.jpg"),
        ("host_bracket_open", "http://[::1"),
        ("host_missing", "http://"),
        ("host_forbidden_character", "http://img<b>.sample.test/picture.jpg"),
        ("host_not_an_address", "http://256.256.256.256/picture.jpg"),
        ("port_out_of_range", "http://img.sample.test:99999/picture.jpg"),
    ):
        page.refused_url(case, supply.take(), src, "bad_url")
    too_long = "http://img.sample.test/long/".ljust(MAX_URL - 3, "x") + ".jpg"
    page.refused_url("url_over_long", supply.take(), too_long, "url_too_long")
    return [page]


def other_tags(_: Plan, supply: Supply) -> list[Draft]:
    """Links that are not IMG@/src; an alt does not save them, although they lead to pictures."""
    page = Draft("https://www.tags.sample.test/mixed.html", "Pictures in other tags")
    for case, path in (
        ("alt_on_anchor", "A@/href"),
        ("alt_on_area", "AREA@/href"),
        ("alt_on_input", "INPUT@/src"),
        ("alt_on_longdesc", "IMG@/longdesc"),
        ("alt_on_source", "SOURCE@/src"),
    ):
        pair = supply.take()
        url = picture_url(pair.file)
        page.image(case, pair, url, path=path, ends=("pairs", "not_image"))
    pair = supply.take()
    page.link("A@/href", picture_url(pair.file), title=pair.text, text=pair.text)
    page.link("STYLE/#text", picture_url(pair.file))
    page.link("BODY@/background", "/background.jpg")
    page.image("image_beside_other_tags", pair := supply.take(), picture_url(pair.file))

    index = Draft("https://www.tags.sample.test/index.html", "A page of three thousand links")
    for number in range(3000):
        index.link("A@/href", f"/article/{number}.html", text=f"Article {number}")
        if number % 1000 == 500:
            index.image("image_among_thousands", pair := supply.take(), picture_url(pair.file))
    return [page, index]


def licences(_: Plan, supply: Supply) -> list[Draft]:
    """Pages with Creative Commons links; the licence is that of the page's pairs."""
    site = "https://www.commons.sample.test"
    by = "https://creativecommons.org/licenses/by/4.0/"
    by_sa_de = "http://creativecommons.org/licenses/by-sa/3.0/de/"
    zero = "https://creativecommons.org/publicdomain/zero/1.0/"
    by_nc = "https://creativecommons.org/licenses/by-nc/2.0/"
    not_a_licence = "https://creativecommons.org/choose/"
    drafts = []
    for case, licence, links in (
        ("licence_by", by, [(by, None)]),
        ("licence_by_sa_de", by_sa_de, [(by_sa_de, "license")]),
        ("licence_zero", zero, [(zero, "license noopener")]),
        ("licence_rel_wins", by_sa_de, [(by_nc, None), (by_sa_de, "license")]),
        ("licence_not_a_licence", NO_LICENCE, [(not_a_licence, None)]),
    ):
        page = Draft(f"{site}/{case}.html", "Pictures to share", licence=licence)
        page.image(case, pair := supply.take(), picture_url(pair.file))
        page.image(case, pair := supply.take(), picture_url(pair.file))
        for url, rel in links:
            page.entries.append(Entry(Link("A@/href", url, text="licence", rel=rel)))
        drafts.append(page)
    return drafts


def _no_scheme(pair: PlannedPair) -> str:
    """Protocol-relative URL of a pair's picture."""
    return picture_url(pair.file).removeprefix("http:")


def _with_entities(text: str) -> str:
    """Write a text as HTML does with named entities."""
    names = {"é": "&eacute;", "–": "&ndash;", "“": "&ldquo;", "”": "&rdquo;", "’": "&rsquo;"}
    return "".join(names.get(char, char) for char in html.escape(text))


def _with_numbers(text: str) -> str:
    """Write a text as HTML does with numeric references, decimal and hexadecimal in turn."""
    return "".join(
        char if char.isascii() and (char.isalnum() or char == " ") else
        (f"&#{ord(char)};" if at % 2 else f"&#x{ord(char):X};")
        for at, char in enumerate(text)
    )  # fmt: skip
