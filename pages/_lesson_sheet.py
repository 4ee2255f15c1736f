"""The lesson's questions on one sheet: an HTML file that needs nothing else, with answers folded away or without."""

from collections.abc import Sequence

from engine.html_report import marked
from engine.records import Run
from pages._lesson_questions import Question
from pages._lesson_steps import Step

STYLE = """
body { font: 17px/1.5 system-ui, sans-serif; max-width: 46rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a;
  background: #fff; }
h1 { font-size: 1.6rem } h2 { font-size: 1.15rem; margin-top: 2rem }
ol { list-style: upper-alpha; padding-left: 1.6rem }
details { border-left: 3px solid #0072b2; padding-left: .8rem } summary { cursor: pointer } .line { margin: 1rem 0 }
.note { color: #555 } section { break-inside: avoid }
"""


def sheet(steps: Sequence[Step], run: Run, *, answers: bool) -> str:
    """HTML text of all questions, numbered as the steps are."""
    parts = [_section(number, step, step.question(run), answers) for number, step in enumerate(steps, start=1)]
    kind = "answers folded away" if answers else "without answers"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>PACD Lab: questions</title>'
        f"<style>{STYLE}</style></head><body><h1>PACD Lab: questions of the lesson</h1>"
        f'<p class="note">Predict first, then look. The numbers are those of run {run.id}; {kind}.</p>\n'
        + "\n".join(parts)
        + "</body></html>\n"
    )


def _section(number: int, step: Step, question: Question, answers: bool) -> str:
    form = "<ol>" + "".join(f"<li>{marked(option)}</li>" for option in question.options) + "</ol>"
    right = f"{chr(ord('A') + question.right)}. {question.options[question.right]}."
    folded = (
        f"<details><summary>Answer</summary><p><b>{marked(right)}</b> {marked(question.because)}</p></details>"
        if answers
        else '<p class="line">Why? ____________________________________________</p>'
    )
    return (
        f"<section><h2>{number}. {marked(step.title)}</h2><p>{marked(step.idea)}</p><p><i>To do:</i> "
        f"{marked(step.task)}</p><p><b>{marked(question.ask)}</b></p>{form}{folded}</section>"
    )
