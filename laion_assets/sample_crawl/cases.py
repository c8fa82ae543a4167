"""Every case the rules speak of, as pages: what is planted, and where each must end up.

The rules are those of docs/pairs.md and docs/downloading.md, the reasons those of
``laion_assets.funnel``. An entry states its resolved URL and cleaned text itself, so that a wrong
rule cannot agree with a wrong expectation. What does not belong here: how records are written
(``records``).
"""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from laion_assets.sample_crawl.plan import Plan, PlannedPair, Supply
from laion_assets.sample_crawl.records import Damage, Link

MAX_TEXT: Final = 4096
MAX_URL: Final = 2048
NO_LICENCE: Final = "?"
IMAGE_HOSTS: Final = (
    "img", "cdn", "static", "photos", "media", "pics",
    "assets", "gallery", "images", "files", "art", "shop",
)  # fmt: skip

Answer = Mapping[str, Any]
Ends = tuple[str, str]
"""(stage, reason) of ``laion_assets.funnel``; ("subset", "kept") is the whole way."""


@dataclass(frozen=True)
class Entry:
    """A link, and what becomes of it if a stage counts it (``ends`` None: no stage does)."""

    link: Link
    case: str = ""
    ends: Ends | None = None
    url: str = ""
    text: str = ""
    answer: Answer | None = None
    scored: PlannedPair | None = None


@dataclass
class Draft:
    """A page in the making."""

    url: str
    title: str
    case: str = ""
    base: str | None = None
    licence: str = NO_LICENCE
    head_links: Sequence[Mapping[str, str]] = ()
    is_html: bool = True
    damage: Damage | None = None
    entries: list[Entry] = field(default_factory=list)
    answers: dict[str, Answer] = field(default_factory=dict)
    """What hosts answer under URLs that no link of the page names."""

    def link(self, path: str, url: str, **more: str) -> None:
        """A link that no stage counts."""
        self.entries.append(Entry(Link(path, url, **more)))

    def image(
        self,
        case: str,
        pair: PlannedPair,
        url: str,
        *,
        src: str | None = None,
        alt: str | None = None,
        answer: Answer | None = None,
        ends: Ends | None = None,
        path: str = "IMG@/src",
    ) -> None:
        """A pair found under ``url``; the page says ``src`` and ``alt`` where they differ."""
        link = Link(path, url if src is None else src, pair.text if alt is None else alt)
        answer = answer or {"file": pair.file}
        if ends is None:
            scored = Entry(link, case, ("subset", pair.reason), url, pair.text, answer, pair)
            self.entries.append(scored)
        else:
            self.entries.append(Entry(link, case, ends, url, pair.text, answer))

    def refused_text(self, case: str, file: str, alt: str | None, reason: str) -> None:
        """A good picture whose alt text the pair rules refuse."""
        url = picture_url(file)
        link = Link("IMG@/src", url, alt)
        answer = {"file": file}
        self.entries.append(Entry(link, case, ("pairs", reason), url, alt or "", answer))

    def refused_url(self, case: str, pair: PlannedPair, src: str, reason: str) -> None:
        """A good text whose URL the pair rules refuse."""
        link = Link("IMG@/src", src, pair.text)
        self.entries.append(Entry(link, case, ("pairs", reason), src, pair.text))


def picture_url(file: str) -> str:
    """Where a picture lives on the sample web."""
    host = IMAGE_HOSTS[sum(file.encode()) % len(IMAGE_HOSTS)]
    return f"http://{host}.sample.test/{file}"


def planted(plan: Plan, supply: Supply) -> list[list[Draft]]:
    """Planted pages by slot: eight WAT files in the order of the crawls and their segments."""
    slots: list[list[Draft]] = [[] for _ in range(8)]
    makers: list[Callable[[Plan, Supply], list[Draft]]] = [
        _texts,
        _languages,
        _urls,
        _refused_urls,
        _other_tags,
        _licences,
        _answers,
        _redirects,
        _private_addresses,
        _opt_outs,
        _files,
        _safety,
        _records,
    ]
    for number, make in enumerate(makers):
        slots[number % len(slots)].extend(make(plan, supply))
    for slot, drafts in _duplicates(plan, supply).items():
        slots[slot].extend(drafts)
    slots[5].append(_truncated(supply))
    return slots


def _texts(plan: Plan, supply: Supply) -> list[Draft]:
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


def _languages(plan: Plan, _: Supply) -> list[Draft]:
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


def _urls(_: Plan, supply: Supply) -> list[Draft]:
    """URLs that must be resolved as a browser does; all of them lead to the right picture."""
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
    return [plain, folder, base, relative, file_base, odd]


def _refused_urls(_: Plan, supply: Supply) -> list[Draft]:
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


def _other_tags(_: Plan, supply: Supply) -> list[Draft]:
    """Links that are not IMG@/src: with an alt they are refused, although a picture is there."""
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


def _licences(_: Plan, supply: Supply) -> list[Draft]:
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


def _answers(_: Plan, supply: Supply) -> list[Draft]:
    """Hosts that answer badly, slowly, or not at all."""
    page = Draft("https://www.hosts.sample.test/answers.html", "Pictures on difficult hosts")

    def plant(case: str, url: str, reason: str, **answer: Any) -> None:
        pair = supply.take()
        served = {"file": pair.file, **answer}
        page.image(case, pair, url, answer=served, ends=("images", reason))

    for status in (403, 404, 410):
        plant(
            f"status_{status}", f"http://gone.sample.test/{status}.jpg", "http_4xx", status=status
        )
    for status, reason in ((500, "http_5xx"), (502, "http_5xx"), (503, "busy")):
        url = f"http://failing.sample.test/{status}.jpg"
        plant(f"status_{status}", url, reason, status=status)
    plant("not_http", "http://failing.sample.test/garbage.jpg", "http_other", do="garbage")
    plant("slow_drip", "http://slow.sample.test/drip.jpg", "timeout", do="drip")
    plant("never_answers", "http://slow.sample.test/silent.jpg", "timeout", do="silent")
    plant("endless_body", "http://endless.sample.test/zeros.jpg", "too_large", do="endless")
    plant("huge_body", "http://endless.sample.test/huge.jpg", "too_large", do="huge")
    plant("cut_body", "http://failing.sample.test/cut.jpg", "connect", do="cut")
    for case, url, reason in (
        ("name_unknown", "http://nowhere.invalid/picture.jpg", "dns"),
        ("host_refuses", "http://dead.sample.test/picture.jpg", "connect"),
        ("no_tls", "https://img.sample.test/secure/picture.jpg", "tls"),
    ):
        page.image(case, supply.take(), url, ends=("images", reason))
    return [page]


def _redirects(_: Plan, supply: Supply) -> list[Draft]:
    page = Draft("https://www.moved.sample.test/redirects.html", "Pictures that moved")
    host = "http://moved.sample.test"

    def plant(case: str, path: str, to: str, reason: str) -> None:
        answer = {"status": 302, "location": to}
        page.image(case, supply.take(), host + path, answer=answer, ends=("images", reason))

    def hop(path: str, to: str) -> None:
        page.answers[host + path] = {"status": 302, "location": to}

    for status in (301, 302, 303, 307, 308):
        pair = supply.take()
        answer = {"status": status, "location": picture_url(pair.file)}
        page.image(f"redirect_{status}", pair, f"{host}/{status}.jpg", answer=answer)
        page.answers[picture_url(pair.file)] = {"file": pair.file}
    pair = supply.take()
    answer = {"status": 302, "location": "../new/place.jpg"}
    page.image("redirect_relative", pair, f"{host}/old/place.jpg", answer=answer)
    page.answers[f"{host}/new/place.jpg"] = {"file": pair.file}
    plant("redirect_loop", "/loop/a.jpg", f"{host}/loop/b.jpg", "redirects")
    hop("/loop/b.jpg", f"{host}/loop/a.jpg")
    plant("redirect_to_itself", "/self.jpg", f"{host}/self.jpg", "redirects")
    plant("redirect_chain", "/chain/1.jpg", f"{host}/chain/2.jpg", "redirects")
    for number in range(2, 21):
        hop(f"/chain/{number}.jpg", f"{host}/chain/{number + 1}.jpg")
    page.answers[f"{host}/chain/21.jpg"] = {"file": supply.take().file}
    for case, to in (
        ("redirect_to_private_10", "http://10.0.0.1/secret.jpg"),
        ("redirect_to_metadata_service", "http://169.254.169.254/latest/meta-data/"),
        ("redirect_to_loopback", "http://127.0.0.1/secret.jpg"),
        ("redirect_to_loopback_v6", "http://[::1]/secret.jpg"),
    ):
        plant(case, f"/{case}.jpg", to, "private_address")
    plant("redirect_to_file", "/file.jpg", "file:///etc/passwd", "url_scheme")
    plant("redirect_to_ftp", "/ftp.jpg", "ftp://ftp.sample.test/pub/a.jpg", "url_scheme")
    return [page]


def _private_addresses(_: Plan, supply: Supply) -> list[Draft]:
    """URLs that point straight into somebody's network."""
    page = Draft("https://www.inside.sample.test/private.html", "Pictures from inside")
    for case, src, url in (
        ("private_10", "http://10.1.2.3/a.jpg", ""),
        ("private_172", "http://172.16.5.4/a.jpg", ""),
        ("private_192", "http://192.168.1.1/a.jpg", ""),
        ("private_loopback", "http://127.0.0.1/a.jpg", ""),
        ("private_loopback_v6", "http://[::1]/a.jpg", ""),
        ("private_link_local", "http://169.254.169.254/latest/a.jpg", ""),
        ("private_unique_local_v6", "http://[fd00::1]/a.jpg", ""),
        ("private_carrier_nat", "http://100.64.0.1/a.jpg", ""),
        ("private_zero", "http://0.0.0.0/a.jpg", ""),
        ("private_decimal", "http://2130706433/b.jpg", "http://127.0.0.1/b.jpg"),
        ("private_octal", "http://0177.0.0.1/c.jpg", "http://127.0.0.1/c.jpg"),
        ("private_mapped_v6", "http://[::ffff:10.0.0.1]/d.jpg", "http://[::ffff:a00:1]/d.jpg"),
    ):
        ends = ("images", "private_address")
        page.image(case, supply.take(), url or src, src=src, ends=ends)
    return [page]


def _opt_outs(_: Plan, supply: Supply) -> list[Draft]:
    page = Draft("https://www.rights.sample.test/headers.html", "Pictures with conditions")
    host = "http://optout.sample.test"
    for case, value in (
        ("opt_out_noai", "noai"),
        ("opt_out_noimageai", "noimageai"),
        ("opt_out_noindex", "noindex"),
        ("opt_out_noimageindex", "noimageindex"),
        ("opt_out_upper_case", "NoAI"),
        ("opt_out_among_others", "nofollow, noimageai"),
        ("opt_out_for_us", "laion-assets: noai"),
    ):
        pair = supply.take()
        answer = {"file": pair.file, "headers": {"X-Robots-Tag": value}}
        page.image(case, pair, f"{host}/{case}.jpg", answer=answer, ends=("images", "opt_out"))
    for case, value in (
        ("opt_in_nofollow", "nofollow"),
        ("opt_out_for_another", "otherbot: noai"),
        ("opt_in_all", "all"),
    ):
        pair = supply.take()
        answer = {"file": pair.file, "headers": {"X-Robots-Tag": value}}
        page.image(case, pair, f"{host}/{case}.jpg", answer=answer)
    return [page]


def _files(plan: Plan, supply: Supply) -> list[Draft]:
    """Bodies that are not what a picture should be."""
    page = Draft("https://www.files.sample.test/bodies.html", "Files of every kind")

    def plant(case: str, name: str, reason: str, **answer: Any) -> None:
        url = f"http://files.sample.test/{case}{name[name.rindex('.') :]}"
        served = {"file": f"special/{name}", **answer}
        page.image(case, supply.take(), url, answer=served, ends=("images", reason))

    plant("small_icon", "icon.png", "too_small")
    plant("one_byte_too_small", "4999.jpg", "too_small")
    page.image(
        "empty_body",
        supply.take(),
        "http://files.sample.test/empty.jpg",
        answer={"type": "image/jpeg"},
        ends=("images", "too_small"),
    )
    for pair in plan.group("boundary"):
        page.image("exactly_5000_bytes", pair, picture_url(pair.file))
    plant("truncated_jpeg", "truncated.jpg", "undecodable")
    plant("corrupt_png", "corrupt.png", "undecodable")
    plant("html_as_jpeg", "page.html", "unsupported_type", type="image/jpeg")
    plant("html", "page.html", "unsupported_type")
    plant("svg", "drawing.svg", "unsupported_type")
    plant("plain_gif", "plain.gif", "unsupported_type")
    plant("bmp", "bitmap.bmp", "unsupported_type")
    plant("animated_gif", "animated.gif", "animated")
    plant("animated_webp", "animated.webp", "animated")
    plant("animated_png", "animated.png", "animated")
    plant("bomb_png", "bomb.png", "too_many_pixels")
    plant("bomb_jpeg", "bomb.jpg", "too_many_pixels")
    return [page]


def _safety(plan: Plan, _: Supply) -> list[Draft]:
    """Every branch of the safety rule, by the harmless stand-ins of prompts/sample.json."""
    page = Draft("https://www.attic.sample.test/shelf.html", "Things in an attic")
    for pair in plan.pairs:
        if pair.group.startswith("safety_"):
            page.image(pair.group, pair, picture_url(pair.file))
    return [page]


def _records(_: Plan, supply: Supply) -> list[Draft]:
    """Records that are damaged, or hold no page with links."""
    site = "https://www.records.sample.test"
    damaged = Draft(f"{site}/damaged.html", "Damaged", case="record_bad_json", damage="bad_json")
    for _number in range(3):
        pair = supply.take()
        damaged.link("IMG@/src", picture_url(pair.file), alt=pair.text)
    empty = Draft(f"{site}/empty.html", "Empty", case="record_without_links")
    other = Draft(f"{site}/paper.pdf", "", case="record_not_html", is_html=False)
    after = Draft(f"{site}/after.html", "After the damage")
    after.image("page_after_damage", pair := supply.take(), picture_url(pair.file))
    return [damaged, empty, other, after]


def _truncated(supply: Supply) -> Draft:
    """The last record of a file that ends too early; what its page held is lost."""
    url = "https://www.records.sample.test/truncated.html"
    page = Draft(url, "Cut off", case="record_truncated", damage="truncated")
    for _ in range(20):
        pair = supply.take()
        page.link("IMG@/src", picture_url(pair.file), alt=pair.text)
    return page


def _duplicates(plan: Plan, supply: Supply) -> dict[int, list[Draft]]:
    """The same (URL, TEXT) again: the first counts, wherever the others are.

    Slots 0 and 1 are one segment, 2 and 3 the same crawl's other one, 4 to 7 the other crawl.
    Which of several segments' copies is kept depends on which segment is materialized first; the
    counts do not.
    """
    pages = {
        slot: Draft(f"https://www.mirror{slot}.sample.test/again.html", "Seen before")
        for slot in (0, 1, 2, 4, 7)
    }
    again = Draft("https://www.mirror0.sample.test/once-more.html", "Seen before, too")
    within, across = ("pairs", "duplicate"), ("unique_pairs", "duplicate")

    pair = supply.take()
    url = picture_url(pair.file)
    pages[0].image("duplicate_first", pair, url)
    pages[0].image("duplicate_same_page", pair, url, ends=within)
    again.image("duplicate_other_page", pair, url, ends=within)
    pages[1].image("duplicate_other_wat", pair, url, ends=within)
    pages[1].image("duplicate_by_fragment", pair, url, src=f"{url}#x", ends=within)
    pages[1].image("duplicate_by_space", pair, url, alt=f" {pair.text}  ", ends=within)
    pages[2].image("duplicate_other_segment", pair, url, ends=across)
    pages[4].image("duplicate_other_crawl", pair, url, ends=across)
    for _ in range(12):
        pair = supply.take()
        pages[0].image("shared_first", pair, picture_url(pair.file))
        pages[2].image("shared_other_segment", pair, picture_url(pair.file), ends=across)
        pages[7].image("shared_other_crawl", pair, picture_url(pair.file), ends=across)
    for pair in plan.group("other_text"):
        pages[4].image("same_url_other_text", pair, picture_url(pair.file))
    return {0: [pages[0], again], **{slot: [pages[slot]] for slot in (1, 2, 4, 7)}}


def _no_scheme(pair: PlannedPair) -> str:
    return picture_url(pair.file).removeprefix("http:")


def padded(text: str, length: int) -> str:
    """The text said again and again until it has ``length`` characters."""
    return (f"{text}. " * (length // len(text) + 1))[: length - 1] + "x"


def _with_entities(text: str) -> str:
    """As HTML writes it with named entities."""
    names = {"é": "&eacute;", "–": "&ndash;", "“": "&ldquo;", "”": "&rdquo;", "’": "&rsquo;"}
    return "".join(names.get(char, char) for char in html.escape(text))


def _with_numbers(text: str) -> str:
    """As HTML writes it with numeric references, decimal and hexadecimal by turns."""
    return "".join(
        char if char.isascii() and (char.isalnum() or char == " ") else
        (f"&#{ord(char)};" if at % 2 else f"&#x{ord(char):X};")
        for at, char in enumerate(text)
    )  # fmt: skip
