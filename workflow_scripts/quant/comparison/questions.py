"""The research questions, and the configuration that asks those whose methods a study lacks."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from quant.comparison.answers import (
    Answered,
    Evidence,
    cost,
    directions,
    of_library,
    of_pairs,
    risk,
)
from quant.comparison.mixing import mixing
from quant.comparison.pairs import (
    AUTOAWQ,
    AUTOROUND,
    LLMCOMPRESSOR,
    alike,
    at_equal_bits,
    calibrated,
    embedded,
    exact_praq,
    is_group,
    smaller_group,
)
from quant.comparison.place_answers import place
from quant.comparison.prediction import layer_error
from quant.comparison.sensitivity_answers import sensitivity
from quant.comparison.task_answers import answers_kept, tasks_order
from quant.comparison.text_answers import learnt, second_text


@dataclass(frozen=True)
class Question:
    """answer fills the verdict of an Answered in, or leaves it as it is where nothing was measured."""

    anchor: str
    question: str
    answer: Callable[[Evidence, Answered], None]
    yaml: str
    caveats: tuple[str, ...] = ()


TASKS_YAML = """\
study:
  tasks: [last_word, continuation, module]
  task_methods: all
"""

QUESTIONS: tuple[Question, ...] = (
    Question(
        "praq",
        "Does PRAQ beat AWQ?",
        of_pairs(
            {
                "full": alike("salience", "praq", "l1", group_size=-1),
                "group-wise": alike("salience", "praq", "l1", group_size=is_group),
                "hybrid objective": alike("objective", "praq", "uniform"),
                "mixed precision": alike("keep", "praq", "awq"),
                "made exact, by the Jacobian": exact_praq,
            },
            ("PRAQ", "AWQ"),
            yes=True,
        ),
        """\
study:
  add: {methods: [full_awq, full_praq, gw_awq, gw_praq, gw_awq_asym_l2, gwh_praq, mixed_awq, mixed_praq, praq_jacobian]}
""",
        (
            "Full and group-wise: salience praq against l1. Hybrid objective: the scale search weighs outputs by their "
            "post-activation importance, or does not. Mixed precision: which channels stay in 16 bit.",
        ),
    ),
    Question(
        "cost",
        "How much does uniform INT4 cost?",
        cost,
        "study:\n  add: {methods: [simple_int4, rtn_g]}\n",
        ("Uniform: every weight to its nearest grid point, no scale search, nothing in 16 bit.",),
    ),
    Question(
        "risk",
        "Do risky dead neurons exist, and does their risk predict the damage done by quantising them?",
        risk,
        "sensitivity:\n  methods: [rtn_g]\n  by: [kind, risk]\n",
        (
            "Dead: mean pre-activation under the threshold; risky: some standard deviations above it is over that "
            "again. The others are drawn by seed from the same linears, as many from each, and the draws averaged.",
        ),
    ),
    Question(
        "robust",
        "Does Robust-PRAQ help when calibration data is short?",
        of_pairs(
            {
                "short, under 16 sequences": lambda recipes: calibrated(recipes, 0, 16),
                "16 sequences or more": lambda recipes: calibrated(recipes, 16, math.inf),
            },
            ("Robust-PRAQ", "PRAQ"),
            yes=True,
        ),
        """\
methods:
  short_praq: {salience: praq, symmetric: true, n_calib: [2, 8, 64]}
  short_robust: {salience: praq, symmetric: true, noise_std: 0.01, n_calib: [2, 8, 64]}
study:
  add: {methods: [short_praq, short_robust]}
""",
        ("Robust-PRAQ takes its statistics under noise on the inputs.",),
    ),
    Question(
        "norm",
        "l2 or l1?",
        of_pairs({"salience": alike("salience", "l2", "l1")}, ("l2", "l1")),
        """\
methods:
  awq_l1: {salience: l1}
study:
  add: {methods: [awq_l1, gw_awq_asym_l2]}
""",
        ("l2 is the mean square of an input channel, l1 its mean magnitude (AWQ's).",),
    ),
    Question(
        "symmetry",
        "Asymmetric or symmetric?",
        of_pairs({"grid": alike("symmetric", False, True)}, ("an asymmetric grid", "a symmetric one")),
        "study:\n  add: {methods: [rtn_g, rtn_g_sym]}\n",
        ("A zero point for each range costs storage: compare bits/weight too.",),
    ),
    Question(
        "flips",
        "Greedy flips or nearest?",
        of_pairs({"rounding": alike("rounding", "greedy_flip", "nearest")}, ("greedy flips", "nearest")),
        "study:\n  add: {methods: [gw_awq_asym_l2, gw_awq_flip]}\n",
        ("Greedy flips move single weights to their second nearest point so that a row's mean error cancels.",),
    ),
    Question(
        "group-size",
        "Which group size?",
        of_pairs({"group size": smaller_group}, ("the smaller group", "the larger")),
        """\
methods:
  size: {group_size: [32, 64, 96, 192]}
study:
  add: {methods: [size]}
""",
        ("Smaller groups store more ranges: compare bits/weight too.",),
    ),
    Question(
        "per-channel",
        "Group-wise or per channel?",
        of_pairs({"group size": alike("group_size", is_group, -1)}, ("group-wise", "per channel")),
        "study:\n  add: {methods: [full_awq, gw_awq, full_praq, gw_praq]}\n",
        ("Groups store more ranges: compare bits/weight too.",),
    ),
    Question(
        "format",
        "Which number format at equal bits?",
        of_pairs(
            {
                "NVFP4": at_equal_bits("nvfp4", "int"),
                "MXFP4": at_equal_bits("mxfp4", "int"),
                "FP8": at_equal_bits("fp8", "int8", "int"),
                "NF4": at_equal_bits("nf4", "int"),
            },
            ("the other format", "whole numbers"),
        ),
        """\
methods:
  formats: {format: [nvfp4, mxfp4, nf4, fp8, int8]}
  whole_32: {symmetric: true, group_size: 32}
study:
  add: {methods: [formats, whole_32, rtn_g_sym]}
""",
        (
            "Bits of a weight with its steps and zero points are within 2 % of each other: NVFP4 takes those of 4-bit "
            "whole numbers in groups of 32, MXFP4 and NF4 in groups of 64, FP8 those of 8 bits per channel.",
        ),
    ),
    Question(
        "activations",
        "What do inputs of 8 bits cost?",
        of_pairs(
            {
                "FP8": alike("activations", "dynamic", "none", format="fp8"),
                "INT8": alike("activations", "dynamic", "none", format="int8"),
            },
            ("rounded inputs", "inputs as they are"),
        ),
        """\
methods:
  eight: {format: [fp8, int8], activations: [none, dynamic]}
study:
  add: {methods: [eight]}
""",
        ("Inputs of linears are rounded as they run, by each token's largest: what W8A8 and FP8 products do.",),
    ),
    Question(
        "mixing",
        "What does mixing widths buy over one width at the same size?",
        mixing,
        """\
methods:
  mixed: {budget: {bits_per_weight: 3.7}, clip: true, rounding: gptq}
study:
  add: {methods: [mixed]}
""",
        (
            "A budget gives each linear one of its candidates' widths, by what the end loss predicts; one width: the "
            "same recipe with that width everywhere. Prediction is of KL on calibration text; `swaps: {}` measures "
            "parts of it there and corrects the rest by them.",
        ),
    ),
    Question(
        "embeddings",
        "What do embeddings cost?",
        of_pairs(
            {
                "8 bits": alike("embeddings", embedded(8), None),
                "4 bits": alike("embeddings", embedded(4), None),
            },
            ("a quantised embedding", "one of 16 bit"),
        ),
        """\
methods:
  small_8: {embeddings: {bits: 8}}
  small_4: {embeddings: {bits: 4, group_size: 32}}
study:
  add: {methods: [small_8, small_4, rtn_g]}
""",
        (
            "The token embedding and the output head. What they save stands under size; transformers reads 8 bits, a "
            "GGUF holds 4 too.",
        ),
    ),
    Question(
        "directions",
        "How do rounding directions differ?",
        directions,
        "study:\n  add: {methods: [rtn_g, gw_awq_asym_l2, gw_awq_flip]}\n",
        ("Of methods that round to the nearest point or flip from it; means over linears. No test is made.",),
    ),
    Question(
        "autoawq",
        "Is AutoAWQ better than ours, in perplexity, size and time?",
        of_library(AUTOAWQ, ("AutoAWQ", "our AWQ")),
        """\
methods:
  awq_clip_l1: {salience: l1, clip: true}
study:
  add: {methods: [autoawq, gw_awq_asym_l2, awq_clip, awq_clip_l1]}
""",
        (
            "AutoAWQ's packed file is read back to 16 bit here, and so are recipes of scope linear, so sizes on disk "
            "do not compare: bits/weight do. Its time has its calibration in it, ours leaves the shared pass out.",
        ),
    ),
    Question(
        "autoround",
        "Is AutoRound better than ours, in perplexity, size and time?",
        of_library(AUTOROUND, ("AutoRound", "ours")),
        """\
study:
  add: {methods: [autoround, awq_clip_gptq_shared, frontier_fast, frontier]}
""",
        (
            "AutoRound's packed file is read back to 16 bit here, so sizes on disk do not compare: bits/weight do. Its "
            "time has its calibration in it, ours leaves the shared pass out.",
        ),
    ),
    Question(
        "llmcompressor",
        "Is llm-compressor's GPTQ better than ours, in perplexity, size and time?",
        of_library(LLMCOMPRESSOR, ("llm-compressor's GPTQ", "ours")),
        """\
study:
  add: {methods: [llmcompressor_gptq, gptq, gptq_clip, awq_clip_gptq_shared, frontier_fast]}
""",
        (
            "Its packed file is read back to 16 bit here, so sizes on disk do not compare: bits/weight do. Its time "
            "has its calibration in it, ours leaves the shared pass out.",
        ),
    ),
    Question(
        "second-text",
        "Does the order hold on a second text?",
        second_text,
        "study:\n  add: {datasets: [docstrings]}\n",
        ("Only pairs told apart on both texts say whether the order holds.",),
    ),
    Question(
        "learnt",
        "Has a method learnt the calibration's kind of text?",
        learnt,
        """\
study:
  add: {methods: [awq_clip_gptq_shared, frontier_fast, frontier]}
""",
        (
            "Asked of a tuned method and the same untuned. What only brings a model back to the original takes the "
            "same share off delta_nll and off KL; a method has learnt the text where delta_nll falls further, or "
            "further than on text of another kind. Beside it methods that take more steps, but are not tuned.",
        ),
    ),
    Question(
        "answers-kept",
        "Which method keeps the original's answers?",
        answers_kept,
        TASKS_YAML,
        (
            "Of the tasks' items, whose answers are right or wrong: a method that answers them as the original does "
            "changes nothing for its reader. Two methods are paired item by item (McNemar's exact test, corrected for "
            "all pairs).",
        ),
    ),
    Question(
        "tasks-order",
        "Do tasks order the methods as perplexity does, as KL does?",
        tasks_order,
        TASKS_YAML,
        (
            "Damage on tasks: the rise of the right answers' negative log likelihood, each task in units of its "
            "largest. Methods are no random sample, and variants of one recipe count as if they were independent.",
        ),
    ),
    Question(
        "place",
        "Where does damage sit: on rare tokens, at late places?",
        place,
        "study:\n  add: {methods: [rtn_g]}\n",
        (
            "Rises of the NLL in nats per token, in two parts of the text each, split as near to half as octaves "
            "allow: how often a token stands in the measured text itself, and how many tokens stand before it in its "
            "sequence. A rare token has a higher NLL to begin with. p corrected for all methods, texts and both parts.",
        ),
    ),
    Question(
        "layer-error",
        "Does layer error predict perplexity?",
        layer_error,
        "study:\n  methods: all\ncheck_mse:\n  layer: 28\n",
        ("Methods are no random sample, and variants of one recipe count as if they were independent.",),
    ),
    Question(
        "sensitivity",
        "Which parts of the model suffer, and which gain most from asymmetric grids?",
        sensitivity,
        "sensitivity:\n  methods: [rtn_g, rtn_g_sym]\n  by: [kind, layer]\n",
        (
            "The original model with only one part quantised: damages of parts need not add up to that of the whole. "
            "Fewer sequences than in the comparison of methods.",
        ),
    ),
)


def ask(evidence: Evidence, questions: Sequence[Question] = QUESTIONS) -> Iterator[Answered]:
    """Every question's answer, in the table's order."""
    for question in questions:
        answered = Answered(question.anchor, question.question, caveats=list(question.caveats), yaml=question.yaml)
        question.answer(evidence, answered)
        yield answered
