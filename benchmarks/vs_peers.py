"""Whole-model speed of bitqwen's types against those of llama.cpp, ik_llama.cpp and bitnet.cpp.

Each contest runs one of our files and the peers' files next to it in bytes, all in turns, with the machine's
read bandwidth and int8 peak measured in the same rounds. A contest is short: run one at a time on an idle
machine and merge the results. Files are made first, by each project's own programs, from one source.

    python benchmarks/vs_peers.py FOLDER --make --text some.txt --peer llama.cpp=BIN/llama-bench \\
        --peer ik_llama.cpp=BIN/llama-bench --peer bitnet.cpp=BIN/llama-bench
    python benchmarks/vs_peers.py FOLDER --peer ... --only ternary --test tg --threads 2 --save results.json
    python benchmarks/vs_peers.py FOLDER --show results.json
"""

from __future__ import annotations

import argparse
from pathlib import Path

from peers import table
from peers.files import Maker
from peers.plan import CONTESTS, PEERS, Contest, Rival
from peers.run import depth, measure

from bitqwen.measure.bench import Test

_TESTS = {"tg": Test("tg", 64), "pp": Test("pp", 512)}
_DEPTH = 4096


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="of the files that are compared")
    parser.add_argument(
        "--peer", action="append", default=[], metavar="NAME=PATH", help="a peer's llama-bench program"
    )
    parser.add_argument("--only", action="append", choices=list(CONTESTS), help="contests to run")
    parser.add_argument("--type", action="append", help="types of the peers to run against, by default all")
    parser.add_argument("--test", action="append", choices=[*_TESTS, "depth"], help="by default tg and pp")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--make", action="store_true", help="make what files are missing, and stop")
    parser.add_argument("--model", default="package:qwen2.5-coder-1.5b", help="to make the files from")
    parser.add_argument("--text", type=Path, help="for the importance matrix that IQ2 types need")
    parser.add_argument("--save", type=Path, help="JSON file that the results are merged into")
    parser.add_argument("--show", type=Path, help="print the table of such a file, and stop")
    options = parser.parse_args()
    try:
        options.programs = {name: Path(path) for name, path in (each.split("=", 1) for each in options.peer)}
    except ValueError:
        parser.error("--peer takes NAME=PATH, for example --peer llama.cpp=build/bin/llama-bench.")
    for name, path in options.programs.items():
        if name not in PEERS or not path.is_file():
            parser.error(
                f"--peer {name}={path}: the name is one of {', '.join(PEERS)}, the path a program's."
            )
    return options


def chosen(contest: Contest, options: argparse.Namespace) -> list[Rival]:
    """The rivals of a contest whose programs were given."""
    return [
        rival
        for rival in contest.rivals
        if rival.peer in options.programs and (not options.type or rival.type in options.type)
    ]


def main() -> None:
    options = arguments()
    if options.show:
        print(table.markdown(table.load(options.show)))
        return
    contests = [CONTESTS[name] for name in options.only or CONTESTS]
    if options.make:
        maker = Maker(options.folder, options.model, options.programs, options.text, options.threads)
        for contest in contests:
            maker.make(contest, chosen(contest, options))
        return
    records: list[table.Record] = []
    for contest in contests:
        for test in options.test or _TESTS:
            common = {"files": options.folder, "threads": options.threads, "rounds": options.rounds}
            if test == "depth":
                records.append(depth(contest, _TESTS["tg"].tokens, _DEPTH, **common))
            elif rivals := chosen(contest, options):
                records += measure(contest, rivals, _TESTS[test], programs=options.programs, **common)
            if options.save:
                table.save(options.save, table.merge(table.load(options.save), records))
    print(table.markdown(records))


if __name__ == "__main__":
    main()
