"""Check the subject of a commit message; pre-commit runs this as its commit-msg hook.

    .venv/bin/python env/commit_message.py .git/COMMIT_EDITMSG

English has no simple test for an imperative: this one refuses the usual mistakes (past tense, -ing,
third person, no verb at all) and lets everything else pass.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

MAX_SUBJECT_CHARACTERS = 72
SCISSORS = (
    "# ------------------------ >8 ------------------------"  # a diff follows (git commit -v)
)
AUTOSQUASH = ("fixup! ", "squash! ", "amend! ")  # disappear in git rebase --autosquash
MERGE = re.compile(r"Merge (branch(es)?|remote-tracking branch|pull request|commit|tag)\b")
IMPERATIVE_IN_ED = {
    "embed",
    "exceed",
    "feed",
    "need",
    "proceed",
    "seed",
    "shed",
    "speed",
    "succeed",
}
IMPERATIVE_IN_ING = {"bring", "fling", "ping", "ring", "spring", "string", "swing"}
IMPERATIVE_IN_S = {"alias", "bias", "canvas", "focus"}
PAST = {
    "began", "broke", "built", "chose", "did", "fed", "gave", "got", "had", "held", "kept",
    "left", "lost", "made", "ran", "rewrote", "said", "sent", "took", "told", "was", "went",
    "were", "wrote",
}  # fmt: skip
NO_VERB = {
    "a", "all", "an", "any", "both", "each", "every", "it", "more", "new", "no", "one", "only",
    "our", "several", "some", "that", "the", "these", "this", "two", "various", "we", "what",
    "wip",
}  # fmt: skip


def find_problems(message: str) -> list[str]:
    """What is wrong with a commit message, one sentence each; empty if nothing is."""
    lines = [
        line.rstrip()
        for line in message.partition(SCISSORS)[0].splitlines()
        if not line.startswith("#")
    ]
    while lines and not lines[0]:
        lines.pop(0)
    if not lines:
        return []  # git itself refuses an empty message
    subject, *body = lines
    if subject.startswith(AUTOSQUASH):
        return []
    if MERGE.match(subject):
        return ["Working branches are rebased, not merged: git rebase origin/main."]
    problems = []
    if len(subject) > MAX_SUBJECT_CHARACTERS:
        problems.append(
            f"The subject has {len(subject)} characters, more than {MAX_SUBJECT_CHARACTERS}."
        )
    if subject.endswith("."):
        problems.append("The subject ends with a period.")
    if body and body[0]:
        problems.append("There is no blank line between subject and body.")
    return problems + _problems_of_first_word(subject)


def _problems_of_first_word(subject: str) -> list[str]:
    found = re.match(r"[^\W\d_]+", subject)
    if not found or re.match(r"[^\s]*:", subject):
        return ["The subject does not start with a verb."]
    word = found[0]
    if not word[0].isupper():
        return [f"{word!r} is not capitalized."]
    if not _may_be_imperative(word.lower()):
        return [f"{word!r} is not an imperative, such as Add, Fix or Remove."]
    return []


def _may_be_imperative(word: str) -> bool:
    if word in PAST or word in NO_VERB:
        return False
    if word.endswith("ed"):
        return word in IMPERATIVE_IN_ED
    if word.endswith("ing"):
        return word in IMPERATIVE_IN_ING
    return not word.endswith("s") or word.endswith("ss") or word in IMPERATIVE_IN_S


def _is_merge() -> bool:
    """Whether git is about to commit a merge."""
    command = ["git", "rev-parse", "--git-path", "MERGE_HEAD"]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.returncode == 0 and Path(done.stdout.strip()).exists()


def main() -> None:
    """Check the message in the file that is named; exit code 1 if it has problems."""
    message = Path(sys.argv[1]).read_text(encoding="utf-8")
    problems = find_problems("Merge branch" if _is_merge() else message)
    for problem in problems:
        print(f"commit message: {problem}", file=sys.stderr)
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
