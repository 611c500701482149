"""Question answering with T5 models such as UnifiedQA: answers, and their scores."""

from topk_np.qa.answering import (
    QAError,
    Question,
    answer,
    evaluate,
    exact_match,
    f1,
    normalized,
    prepared,
    read_questions,
)

__all__ = [
    "QAError",
    "Question",
    "answer",
    "evaluate",
    "exact_match",
    "f1",
    "normalized",
    "prepared",
    "read_questions",
]
