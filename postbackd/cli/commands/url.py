"""`postback url`: the URL to paste at a network, and the pixel for a landing page."""

import argparse
import difflib
import html
from collections.abc import Mapping
from urllib.parse import quote

from postbackd.cli import output
from postbackd.cli.context import load_settings
from postbackd.cli.options import Subparsers, add_command, add_json, read_code
from postbackd.config.settings import Settings
from postbackd.intake.macros import is_macro
from postbackd.intake.query import KNOWN_NAMES, SUBID_NAMES

# The macros that every network has; an unreplaced `{tid}` counts as not sent. No currency: an
# unreplaced macro would make every amount's currency unknown.
DEFAULT_MACROS: Mapping[str, str] = {
    "subid": "{subid}",
    "status": "{status}",
    "payout": "{payout}",
    "tid": "{tid}",
}

# Options that add a parameter with a fixed value, and their help.
FIXED_PARAMETERS: Mapping[str, str] = {
    "lead_status": "the network's words for a lead, with commas",
    "sale_status": "the network's words for a sale",
    "rejected_status": "the network's words for a rejected conversion",
    "rebill_status": "the network's words for a rebill",
    "ignore": "the network's words to ignore",
    "currency": "the currency the network pays in, such as EUR",
    "return": "the answer that the network expects (default: Success)",
    "from": "the network's name, stored with its postbacks",
}


def add_parser(subparsers: Subparsers) -> None:
    """Add `url`."""
    parser = add_command(
        subparsers,
        "url",
        run,
        "print the Postback URL and the tracking pixel",
        "postback url --macros subid={sub1},status={status},payout={sum} --sale-status approved",
        more="The first line is the Postback URL; lines that begin with # explain.",
    )
    parser.add_argument(
        "--macros",
        type=read_macros,
        metavar="NAME=MACRO,…",
        help="our parameters and the network's macros for them",
    )
    for name, summary in FIXED_PARAMETERS.items():
        # `fixed_from`: `from` and `return` are keywords of Python.
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            dest=f"fixed_{name}",
            type=read_code if name == "currency" else str,
            metavar="CODE" if name == "currency" else "TEXT",
            help=summary,
        )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Print the addresses."""
    settings = load_settings(args)
    output.reveal_keys()
    fixed = {name: getattr(args, f"fixed_{name}") for name in FIXED_PARAMETERS}
    given = {name: value for name, value in fixed.items() if value}
    url = build_url(settings, {**(args.macros or DEFAULT_MACROS), **given})
    tag = build_pixel_tag(settings)
    if args.json:
        output.print_json([{"postback_url": url, "pixel_tag": tag}])
    else:
        output.print_line(url)
        _explain(settings, tag, has_macros=args.macros is not None)
    if args.macros and not args.macros.keys() & set(SUBID_NAMES):
        output.print_error("without subid no postback finds its click: add subid= to --macros")
    return 0


def build_url(settings: Settings, parameters: Mapping[str, str], base: str | None = None) -> str:
    """Build the Postback URL."""
    query = "&".join(f"{name}={_quote_value(value)}" for name, value in parameters.items())
    return f"{base or settings.public_url}/{quote(settings.postback_key, safe='')}/postback?{query}"


def build_pixel_tag(settings: Settings) -> str | None:
    """Build the `<img>` tag for a landing page; None where no pixel_key is set."""
    if not settings.pixel_key:
        return None
    key = quote(settings.pixel_key, safe="")
    url = f"{settings.public_url}/{key}/postback.gif?subid={{subid}}&status=lead"
    return f'<img src="{html.escape(url)}" width="1" height="1" alt="">'


def read_macros(text: str) -> dict[str, str]:
    """Read `subid={sub1},status={status}`; an unknown name is refused."""
    macros = {}
    for part in text.split(","):
        name, equals, value = part.strip().partition("=")
        if not equals or not value:
            raise argparse.ArgumentTypeError(
                f"{part!r} is no NAME=MACRO; write subid={{sub1}},status={{status}}"
            )
        if name not in KNOWN_NAMES:
            [nearest] = difflib.get_close_matches(name, KNOWN_NAMES, 1, 0)
            raise argparse.ArgumentTypeError(
                f"{name!r} is no parameter of ours; the nearest is {nearest!r}"
            )
        macros[name] = value
    return macros


def _quote_value(value: str) -> str:
    # A network finds its macro only unescaped, `#x#` and `[x]` too.
    return value if is_macro(value) else quote(value, safe="{},")


def _explain(settings: Settings, tag: str | None, *, has_macros: bool) -> None:
    if not has_macros:
        output.print_line(
            "# Postback URL for the network. Put its own macros in place of {…}, or name them:"
        )
        output.print_line("#   postback url --macros subid={sub1},status={status},payout={sum}")
    if not settings.public_url_is_set:
        output.print_line(
            "# Networks cannot reach 127.0.0.1: set [system] public_url in the config file."
        )
    if tag is None:
        output.print_line(
            "# No tracking pixel: set [system] pixel_key in the config file to have one."
        )
    else:
        output.print_line("# Tracking pixel for a landing page, it books leads only:")
        output.print_line(tag)
