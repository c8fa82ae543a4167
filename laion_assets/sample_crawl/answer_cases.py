"""Cases that hosts decide by what they answer: errors, redirects, opt-outs and bad files."""

from __future__ import annotations

from typing import Any

from laion_assets.pairs.rules import PairRules
from laion_assets.sample_crawl.drafts import Draft, picture_url
from laion_assets.sample_crawl.plan import Plan, Supply


def answers(_: Plan, supply: Supply) -> list[Draft]:
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


def redirects(_: Plan, supply: Supply) -> list[Draft]:
    """Redirects that lead to a picture, in circles, too far, or where they must not."""
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


def private_addresses(_: Plan, supply: Supply) -> list[Draft]:
    """URLs that point straight into somebody's private network."""
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


def opt_outs(_: Plan, supply: Supply) -> list[Draft]:
    """Answers with ``X-Robots-Tag``, some of which forbid the use."""
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


def files(plan: Plan, supply: Supply) -> list[Draft]:
    """Bodies that are no acceptable picture, and one of exactly the smallest size."""
    page = Draft("https://www.files.sample.test/bodies.html", "Files of every kind")

    def plant(case: str, name: str, reason: str, **answer: Any) -> None:
        suffix = name[name.rindex(".") :]
        pair, url = supply.take(), f"http://files.sample.test/{case}{suffix}"
        if suffix in PairRules().refused_suffixes:
            # Refused by its name; under a name without suffix the body decides.
            page.refused_url(f"{case}_by_name", pair, url, "url_suffix")
            url = url.removesuffix(suffix)
        served = {"file": f"special/{name}", **answer}
        page.image(case, pair, url, answer=served, ends=("images", reason))

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
