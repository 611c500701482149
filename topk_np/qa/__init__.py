"""Question answering with T5 models such as UnifiedQA: answers, and how well they are matched."""

from topk_np.qa.answers import QAError, answer, prepared
from topk_np.qa.evaluation import evaluate
from topk_np.qa.files import Question, read_questions
from topk_np.qa.scores import exact_match, f1, normalized

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
