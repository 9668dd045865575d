r"""The math verifier: throughput, 10,000 mixed real and hostile answers, the hand-checked forms, all gold answers.

    python benchmarks/verify.py throughput --data DIR   # MATH-500 golds, right and wrong completions, nothing cached
    python benchmarks/verify.py stress --data DIR       # 10,000 answers: no hang, no crash, faults counted
    python benchmarks/verify.py forms                   # tests/verifiers/forms.jsonl: ours and math-verify's verdicts
    python benchmarks/verify.py golds --data DIR        # each gold of each set against itself

DIR holds the sets as JSON Lines files with an ``answer`` in each row (math500.jsonl, gsm8k_test.jsonl...).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import resource
import sys
import time
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from steerkit.verifiers import MathVerifier, WorkerPool, extract_answer

FORMS = Path(__file__).parents[1] / "tests" / "verifiers" / "forms.jsonl"
Pair = tuple[str, str]
"""Completion and gold."""


def golds_of(folder: Path) -> dict[str, list[str]]:
    """The gold answers of each set."""
    files = sorted(folder.glob("*.jsonl"))
    if not files:
        sys.exit(f"No .jsonl file in {folder}.")
    return {file.stem: [json.loads(line)["answer"] for line in file.open(encoding="utf-8")] for file in files}


def boxed(answer: str) -> str:
    return rf"We get what was asked for, so the answer is $\boxed{{{answer}}}$."


def rewritten(gold: str) -> str:
    """Another spelling of the same answer, so that equal text is not all that is tested."""
    return r"\displaystyle " + gold.replace(r"\frac", r"\dfrac").replace("(", r"\left(").replace(")", r"\right)")


# -- throughput


def uncached(candidate: str, gold: str) -> tuple[str, str]:
    """``equivalent`` without what earlier answers left in the worker's memory."""
    from steerkit.verifiers import equivalence

    for function in (equivalence._read_gold, equivalence._has_value, equivalence._gold_by_library):
        function.cache_clear()
    return equivalence.equivalent(candidate, gold)


def prepare() -> None:
    """Called by the worker once, as for the real function."""
    from steerkit.verifiers import equivalence

    equivalence.prepare()


def throughput(args: argparse.Namespace) -> None:
    """Unique pairs: each gold of the set with itself, in another spelling, and with two other golds."""
    golds = golds_of(args.data)["math500"]
    rng = random.Random(args.seed)
    right = {(boxed(answer), gold) for gold in golds for answer in (gold, rewritten(gold))}
    work = sorted(right | {(boxed(other), gold) for gold in golds for other in rng.sample(golds, 2)})
    rng.shuffle(work)
    integers = sum(MathVerifier()._in_parent(extract_answer(c) or "", g) is not None for c, g in work)
    print(
        f"{len(work):,} unique pairs, {len(right):,} of them right by construction, over {len(set(golds))} different "
        f"golds; {integers:,} are two plain integers, which the parent judges."
    )
    for number in range(args.repeat):
        with MathVerifier(workers=args.workers) as verifier:
            verifier.pool = WorkerPool("verify:uncached", args.workers, 5.0)
            verifier.wait()
            cpu, start = cpu_seconds(verifier), time.perf_counter()
            verdicts = verifier.verify_many([c for c, _ in work], [g for _, g in work])
            wall, cpu = time.perf_counter() - start, cpu_seconds(verifier) - cpu
        counts = dict(Counter(verdict.status for verdict in verdicts))
        found = sum(verdict.correct for pair, verdict in zip(work, verdicts, strict=True) if pair in right)
        print(
            f"run {number + 1}: {len(work) / wall:,.0f} answers/s, {1000 * cpu / len(work):.3f} ms of processor time "
            f"an answer (parent and workers), load {os.getloadavg()[0]:.1f}; {counts}, {found:,} right ones found"
        )


def cpu_seconds(verifier: MathVerifier) -> float:
    """Processor time of this process and of the workers (Linux)."""
    total = time.process_time()
    for slot in verifier.pool._slots:
        if slot._process is not None:
            fields = Path(f"/proc/{slot._process.pid}/stat").read_text().rpartition(")")[2].split()
            total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


# -- stress


def hostile(rng: random.Random) -> tuple[str, str]:
    """(kind, completion) of one hostile answer, different each time."""
    n = rng.randrange(2, 10**6)
    depth = rng.randrange(50, 900)
    pick = rng.choice
    kinds = {
        "power tower": pick([f"{n}^{n}^{n}^9", f"9**9**9**{n}", f"{n}^{{9^{{9^{{9}}}}}}", f"e^{{e^{{e^{{{n}}}}}}}"]),
        "huge exponent": pick([f"10^{{10^{{{n}}}}}", f"1e{n}", rf"\sqrt[{n}]{{10^{{{n}}}}}", f"(x+1)^{{{n}}}"]),
        "factorial": pick([f"{n}!", f"((({n}!)!)!)!", rf"\binom{{{n}00}}{{{n}}}"]),
        "deep nesting": pick(["({[", r"\frac{", r"\sqrt{", r"\left(", "|", r"\text{"]) * depth,
        "matched nesting": "(" * depth + str(n) + ")" * depth,
        "LaTeX bomb": pick([r"\def\a{\a\a}\a", r"\newcommand{\x}{\x\x}\x", r"\input{/dev/zero}"]) + str(n),
        "giant matrix": r"\begin{pmatrix}" + r"\\".join("&".join([str(n)] * 30) for _ in range(30)) + r"\end{pmatrix}",
        "giant list": ",".join(str(n + k) for k in range(rng.randrange(50, 250))),
        "giant sum": "+".join(rf"\frac{{1}}{{10^{{2000}}+{n + k}}}" for k in range(40)),
        "odd characters": f"{n}" + pick(["\0", "\ud800", "\u202e", "\u0301" * 300, "🙂", "\x1b[2J", "\\"]),
        "code": pick(["__import__('os').abort()", "().__class__.__bases__", "exec('1')", "lambda: 0"]) + f" # {n}",
        "unevaluated": pick([rf"\sum_{{k=1}}^{{{n}}} k", rf"\int_0^{{{n}}} x dx", rf"\gcd({n},{n + 1})"]),
        "guesses": pick([f"{n}, {n + 1}", f"{n} or {n + 1}", f"{n}={n + 1}", rf"{n} \pm 1", f"{n} {n + 1}", f"{n}?!"]),
        "token soup": " ".join(pick(SOUP) for _ in range(rng.randrange(2, 60))),
    }
    kind = pick([*kinds, "million characters", "open boxes"])
    if kind == "million characters":
        return kind, pick(["a", "(", "1", r"\boxed{", "#### "]) * (10**6 // 7) + boxed("(" * (n % 5000 + 2001))
    if kind == "open boxes":
        return kind, r"\boxed{" * (n % 9000 + 1)
    return kind, boxed(kinds[kind])


_SOUP = r"""\frac \sqrt \text{ { } ( ) [ ] \{ \} \left( \right) | , ; : . + - * / ^ _ = < > \le \in \cup \pm \pi e i x y
0 1 2 1,000 1e5 \infty \sin \log ^{ _{ ! ' ° % \$ $ & \\ \begin{pmatrix} \end{pmatrix} cm and or f(x) \lfloor \binom"""
SOUP = _SOUP.split()
BEYOND = (r"\sum_{k=1}^{n} k", r"\int_0^x t^2 dt", r"\prod_{k=1}^{n} 2k")
"""Gold answers that go to math_verify, where sympy may hang: the pool must end it."""
SPINS = (r"10^{{10^{{{}}}}}", r"\prod_{{k=1}}^{{{}}} k", r"({}^9)!", r"9^{{9^{{9^{{{}}}}}}}")


def stress(args: argparse.Namespace) -> None:
    """Half real golds with right and wrong answers, half hostile answers; 30 of these hang inside sympy."""
    rng = random.Random(args.seed)
    golds = [gold for answers in golds_of(args.data).values() for gold in answers]
    cases: list[tuple[str, Pair]] = []
    spinning = min(30, args.n // 100)
    for number in range(args.n):
        gold = rng.choice(golds)
        if number < spinning:
            text = rng.choice(SPINS).format(rng.randrange(10**8, 10**9))
            cases.append(("hangs in sympy", (boxed(text), rng.choice(BEYOND))))
        elif number % 4 == 0:
            cases.append(("real, right", (boxed(rewritten(gold) if number % 8 else gold), gold)))
        elif number % 4 == 1:
            cases.append(("real, another gold", (boxed(rng.choice(golds)), gold)))
        else:
            kind, completion = hostile(rng)
            cases.append((kind, (completion, gold)))
    rng.shuffle(cases)
    table: dict[str, Counter[str]] = {}
    with MathVerifier(workers=args.workers, timeout=args.timeout) as verifier:
        verifier.wait()
        start, cpu = time.perf_counter(), time.process_time()
        for kind, pair in _judged(verifier, cases, table):
            if kind != "real, right" and pair[0] != boxed(pair[1]):
                print(f"{kind}, yet correct: {pair[1]!r} and {pair[0]!r:.300}")
        wall = time.perf_counter() - start
        for kind in sorted(table):
            print(f"{kind:<20} {sum(table[kind].values()):>6,}  {dict(table[kind])}")
        print(f"pool: {dict(verifier.pool.counts)}")
        rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        peaks = [_peak(slot._process.pid) for slot in verifier.pool._slots if slot._process is not None]
    judged = sum(sum(row.values()) for row in table.values())
    print(
        f"{judged:,} of {args.n:,} answers judged in {wall:.1f} s with {args.workers} workers (time-out "
        f"{args.timeout:g} s, load {os.getloadavg()[0]:.1f}); parent: {time.process_time() - cpu:.1f} s of processor "
        f"time, peak {rss} MiB; workers at the end: peak {', '.join(map(str, peaks))} MiB."
    )


def _judged(
    verifier: MathVerifier, cases: list[tuple[str, Pair]], table: dict[str, Counter[str]]
) -> Iterator[tuple[str, Pair]]:
    """Judges in batches, fills ``table`` and yields what was judged correct."""
    for at in range(0, len(cases), 200):
        batch = cases[at : at + 200]
        verdicts = verifier.verify_many([pair[0] for _, pair in batch], [pair[1] for _, pair in batch])
        for (kind, pair), verdict in zip(batch, verdicts, strict=True):
            cause = verdict.status if verdict.status != "fault" else f"fault: {verdict.reason}"
            table.setdefault(kind, Counter())[cause] += 1
            if verdict.correct:
                yield kind, pair


def _peak(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) // 1024


# -- forms and golds


def forms(args: argparse.Namespace) -> None:
    """Our verdicts and those of math_verify as its README calls it, on the hand-checked forms."""
    import logging

    from math_verify import parse, verify

    logging.disable(logging.CRITICAL)
    rows = [json.loads(line) for line in FORMS.read_text(encoding="utf-8").splitlines()]
    with MathVerifier(workers=args.workers) as verifier:
        verdicts = verifier.verify_many([row["completion"] for row in rows], [row["gold"] for row in rows])
    table: dict[str, Counter[str]] = {}
    for row, verdict in zip(rows, verdicts, strict=True):
        counts = table.setdefault(row["class"], Counter())
        counts["forms"] += 1
        counts["ours wrong"] += (verdict.status == "correct") != row["expected"]
        gold, found = (parse(text, parsing_timeout=None) for text in (rf"\boxed{{{row['gold']}}}", row["completion"]))
        theirs = verify(gold, found, timeout_seconds=None)
        if theirs != row["expected"]:
            counts["false correct" if theirs else "false wrong"] += 1
            if args.list:
                print(f"{row['class']} | {row['gold']} | {row['completion']} | math-verify: {theirs}")
    print(f"{'class':<52} forms  ours wrong  math-verify: false correct, false wrong")
    total: Counter[str] = Counter()
    for name, counts in table.items():
        total.update(counts)
        numbers = [counts[column] for column in ("forms", "ours wrong", "false correct", "false wrong")]
        print("{:<52} {:>5} {:>11} {:>27} {:>12}".format(name, *numbers))
    print(f"{len(table)} classes: {dict(total)}")


def golds(args: argparse.Namespace) -> None:
    """Each gold against itself: it must be correct."""
    total: Counter[str] = Counter()
    with MathVerifier(workers=args.workers) as verifier:
        for name, answers in golds_of(args.data).items():
            verdicts = verifier.verify_many([rf"\boxed{{{gold}}}" for gold in answers], answers)
            total.update(verdict.status for verdict in verdicts)
            for gold, verdict in dict(zip(answers, verdicts, strict=True)).items():
                if not verdict.correct:
                    print(f"{name}: {gold!r}: {verdict.status}, {verdict.reason}")
    print(f"{sum(total.values()):,} rows: {dict(total)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["throughput", "stress", "forms", "golds"])
    parser.add_argument("--data", type=Path, help="folder of the sets")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeat", type=int, default=3, help="throughput: runs, each with fresh workers")
    parser.add_argument("--n", type=int, default=10_000, help="stress: answers")
    parser.add_argument("--timeout", type=float, default=3.0, help="stress: seconds an answer may take")
    parser.add_argument("--list", action="store_true", help="forms: print each one that math-verify judges wrongly")
    args = parser.parse_args()
    if args.data is None and args.what != "forms":
        parser.error("--data is missing")
    names = ("math-verify", "latex2sympy2_extended", "sympy", "mpmath")
    print(f"Python {platform.python_version()}, " + ", ".join(f"{name} {version(name)}" for name in names))
    {"throughput": throughput, "stress": stress, "forms": forms, "golds": golds}[args.what](args)


if __name__ == "__main__":
    main()
