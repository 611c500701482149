"""
Write docs/explain/mutation.md: what became of the mutants, and of each survivor why.

The mutants are those of docs/data/mutants.json, which `make mutants` writes; what is said of the
survivors is in tests/mutants/verdicts.toml: `python docs/tables/mutation.py`.
"""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[1]
PAGE = DOCS / "explain" / "mutation.md"
MUTANTS = DOCS / "data" / "mutants.json"
VERDICTS = DOCS.parent / "tests" / "mutants" / "verdicts.toml"
INTRODUCTION = """# How the tests are tested

<!-- Made by docs/tables/mutation.py from what `make mutants` found. -->

A test that cannot fail tests nothing. So the core of the package is changed on purpose, in one
place at a time (a `<` becomes `<=`, a 1 becomes 2, a `not` goes, a loop does not run), and the
tests are run on each such *mutant*. One that no test notices has *survived*: either it is the same
function in other words, or a test is missing.

```console
make mutants                 # go on where it stopped, or begin
make mutants ARGS=--again    # run what survived on the tests as they are now
make mutants ARGS="--fresh --count 500 --seed 1"
```

[Cosmic Ray](https://cosmic-ray.readthedocs.io) makes the mutants, and a seed draws which ones are
tried: first places in the code, then one of the mutants at each, because a single product has
eleven, most of which fail at once. Annotations are left out, as nothing evaluates them. A mutant
is run on the tests that concern its module (`tests/mutants/suite.py`), always with the same
examples, on a copy of the sources, with limits to time and memory. That takes a few seconds; all
of them take from half an hour to an hour of one core, can be stopped at any time, and are no part
of CI.

"""
OUTDATED = """The mutants were drawn before the core was rewritten: files are those of that time.

"""


def main() -> None:
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)


def page() -> str:
    """The text of the page."""
    data = json.loads(MUTANTS.read_text(encoding="utf-8"))
    verdicts = tomllib.loads(VERDICTS.read_text(encoding="utf-8"))
    mutants = data["mutants"]
    survivors = [mutant for mutant in mutants if not mutant["killed"]]
    same = [(mutant, said_of(mutant, verdicts["equivalent"])["why"]) for mutant in survivors]
    late = [entry for entry in verdicts["found"] if any(matches(entry, m) for m in mutants)]
    killed, count = len(mutants) - len(survivors), len(mutants)
    rate = killed / count
    adjusted = killed / (count - len(same))
    first = (killed - len(late)) / count
    summary = (
        f"Of {count} mutants {killed} were killed, {rate:.1%}. The other {len(same)} are "
        f"equivalent, as far as we can see, each for the reason below: of those that can be "
        f"noticed {adjusted:.1%} were killed. At first it was {first:.1%} of all; what survived "
        f"then is the last list. (Cosmic Ray {data['cosmic_ray']}, Python {data['python']}.)\n\n"
    )
    if not all(exists(mutant["file"]) for mutant in mutants):
        summary += OUTDATED
    return INTRODUCTION + summary + table(mutants) + equivalents(same) + found(late)


def table(mutants: list[dict[str, Any]]) -> str:
    """The number of mutants in each file."""
    text = "| file | mutants | killed | survived |\n|---|---|---|---|\n"
    for file in sorted({mutant["file"] for mutant in mutants}):
        own = [mutant["killed"] for mutant in mutants if mutant["file"] == file]
        text += f"| {named(file)} | {len(own)} | {sum(own)} | {len(own) - sum(own)} |\n"
    return text


def named(file: str) -> str:
    """The name of a file, as code if it is still there."""
    return f"`{file}`" if exists(file) else file


def exists(file: str) -> bool:
    """Return whether a file of the project is still there."""
    return (DOCS.parent / file).exists()


def equivalents(same: list[tuple[dict[str, Any], str]]) -> str:
    """The survivors, each with the reason why nothing can notice it."""
    text = "\n## What survived, and why nothing could notice it\n"
    for mutant, why in same:
        text += f"\n{change(mutant)}\n{why.strip()}\n"
    return text


def found(entries: list[dict[str, Any]]) -> str:
    """The mutants that survived at first, and the test that kills each now."""
    text = "\n## What survived at first, and the test that notices it now\n"
    for entry in entries:
        text += f"\n{change(entry)}\n`{entry['test']}`\n"
    return text


def change(mutant: dict[str, Any]) -> str:
    """A mutant as a diff."""
    lines = [f"- {mutant['was']}", *([f"+ {mutant['becomes']}"] if mutant["becomes"] else [])]
    return "\n".join([named(mutant["file"]), "", "```diff", *lines, "```", ""])


def said_of(mutant: dict[str, Any], verdicts: list[dict[str, str]]) -> dict[str, str]:
    """The verdict on a mutant; lines move, so it is found by what it changes."""
    for verdict in verdicts:
        if matches(verdict, mutant):
            return verdict
    raise LookupError(f"{VERDICTS} says nothing of {mutant}")


def matches(verdict: dict[str, str], mutant: dict[str, Any]) -> bool:
    """Return whether a verdict is one on this mutant, and not on one of another draw."""
    return all(verdict[name] == mutant[name] for name in ("file", "was", "becomes"))


if __name__ == "__main__":
    main()
