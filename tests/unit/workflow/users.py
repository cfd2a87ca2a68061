"""Groups of scripts, and by hand every module of the library and whose jobs an edit of it makes again."""

from quant.recipe import choices, libraries
from quant.workflow import tracking

PASSES = {
    "collect_statistics",
    "collect_shard",
    "collect_noisy",
    "collect_jacobian",
    "collect_end_loss",
    "collect_attention",
    "quantize_with_model",
    "check_mse",
}  # the model, block by block
RECIPES = {"quantize", "quantize_shard", "quantize_with_model"}
QUANTIZERS = RECIPES | {"quantize_library"}
LIBRARIAN = {"quantize_library", "check_study"}  # they know the libraries
ROUNDERS = QUANTIZERS | {"check_study"}
EVALUATIONS = {"evaluate", "evaluate_shard", "evaluate_original", "evaluate_original_shard"}
READERS = {  # of a method's checkpoint
    *("evaluate", "evaluate_shard", "measure_error", "measure_heldout", "measure_sensitivity", "export"),
}
MEASURES = EVALUATIONS | {"measure_sensitivity"}
ANALYSES = {"analyse_preactivations", "deep_dive"}
PLOTS = {"plot_preactivations", "plot_deep_dive", "plot_synthetic"}
FROM_FILES = PLOTS - {"plot_synthetic"}  # they read samples of z
TOKENS = {"tokenize_calibration", "tokenize_dataset"}
TEXTS = {*TOKENS, "check_texts"}
TABLES = {"summarize", "summarize_sensitivity", "answer_questions"}
ANSWERS = {"evaluate_task", "write_words"}
CODES = (
    READERS | QUANTIZERS | EVALUATIONS | ANSWERS | {"check_best", "check_export", "check_study", "quantize_budget"}
)  # of checkpoints that are packed
TENSORS = CODES | PASSES | TEXTS | ANALYSES | FROM_FILES | {"convert", "make_task", "synthetic_benchmark"}
COMPARISONS = TABLES | {"summarize_tasks", "summarize_words", "pick", "plot", "plot_tasks", "report"}
MEASURED = {"measure_error", "measure_heldout", "measure_sensitivity", "measure_swaps"}
TOKENIZERS = ANSWERS | {"convert", "export", "make_task", "plan"}
LIBRARY = tracking.SCRIPTS / "quant"
CHOSEN = {
    key: {name: f"quant.recipe.{package}.{name}" for name in table if name != "none"}
    for key, (package, table) in choices.CHOICES.items()
}
# all that a script may import by a recipe's names
BY_NAME = dict.fromkeys(RECIPES, tuple(module for names in CHOSEN.values() for module in names.values()))
BY_NAME |= dict.fromkeys(LIBRARIAN, tuple(map(libraries.module_of, libraries.LIBRARIES)))
ALL = {path.stem for path in tracking.SCRIPTS.glob("*.py")}
OURS = ALL - {f"{name}_worker" for name in (*libraries.LIBRARIES, "lm_eval")}  # they run in environments of their own
USERS: dict[str, set[str]] = {
    "report/figures/axes": PLOTS | {"plot"},
    "report/figures/check": {"plot"},
    "report/figures/draw": {"plot"},
    "report/figures/layer": {"plot_deep_dive"},
    "report/figures/linears": {"plot"},
    "report/figures/pairs": {"plot"},
    "report/figures/preactivations": {"plot_preactivations"},
    "report/figures/style": PLOTS | {"plot", "plot_tasks", "report"},
    "report/figures/synthetic": {"plot_synthetic"},
    "report/sections/layer": {"report"},
    "report/sections/models": {"report"},
    "report/sections/preactivations": {"report"},
    "report/sections/synthetic": {"report"},
    "report/sections/words": {"report"},
    "report/study": {"report"},
    "comparison/untried": {"report"},
    "comparison/answers": {"answer_questions", "report"},
    "models/architectures": RECIPES
    | FROM_FILES
    | ANALYSES
    | {"check_study", "collect_jacobian", "export", "measure_sensitivity", "measure_swaps", "check_export"},
    "files/artifacts": OURS,
    "methods/block": RECIPES,
    "calibration/blocks": PASSES | MEASURES | {"export", "measure_swaps"},
    "checkpoints/card": {"describe"},
    "recipe/choices": TABLES | {"plan", "describe", "report", "check_best", "check_study"},
    "recipe/context": ROUNDERS,
    "recipe/functions": RECIPES,
    "recipe/quantized": QUANTIZERS | {"check_study"},
    "calibration/channels": PASSES | RECIPES | ANALYSES | FROM_FILES | MEASURED | {"synthetic_benchmark"},
    "comparison/paired": COMPARISONS | {"check_mse", "check_study", "synthetic_benchmark"},
    "comparison/summary": {"plot", "report", "summarize"},
    "models/cards": PASSES | ROUNDERS | MEASURES | ANSWERS | MEASURED | {"export", "plan"},
    "models/compute": PASSES | ROUNDERS | MEASURES | ANSWERS | MEASURED | {"export", "plan"},
    "workflow/configuration": set(),  # of the Snakefile, whose rules pass on what it makes of config.yaml
    "models/convert": {"convert"},
    "checkpoints/coverage": QUANTIZERS | EVALUATIONS | {"check_study", "quantize_budget"},
    "models/depth": {"plan", "check_mse", "check_study", "deep_dive"},
    "comparison/correlation": {"answer_questions", "deep_dive", "report"},
    "files/csv_tables": COMPARISONS
    | FROM_FILES
    | ANALYSES
    | {
        "check_mse",
        "choose_widths",
        "describe",
        "measure_error",
        "measure_heldout",
        "quantize_budget",
        "synthetic_benchmark",
    },
    "analysis/deep_dive": {"deep_dive"},
    "evaluation/divergence": MEASURES | ANSWERS | {"measure_swaps"},
    "errors": OURS,
    "evaluation/perplexity": MEASURES | ANSWERS | {"measure_swaps"},
    "evaluation/record": EVALUATIONS,
    "report/figures/study": {"plot"},
    "recipe/correction": {"quantize_with_model"},
    "recipe/fused": ROUNDERS,
    "checkpoints/gemm": {"check_study", "export", "quantize_library", "check_export"},
    "checkpoints/gguf_file": {"export", "check_study", "check_export"},
    # a checkpoint is read by its grid
    "recipe/grids": CODES | {"check_mse", "choose_widths", "measure_swaps"},
    "calibration/end_loss": {"collect_end_loss"},
    "calibration/hidden": PASSES | MEASURES | {"export", "measure_swaps"},
    "calibration/jacobian": {"collect_jacobian"},
    "workflow/job": OURS,
    "recipe/grid_kernels": ROUNDERS,
    "recipe/key": LIBRARIAN
    | TABLES
    | {"build_library", "describe", "plan", "report", "check_best", "plot", "check_export"},
    "recipe/keys": TABLES | {"plan", "describe", "report", "check_best", "check_study"},
    "analysis/layer_mse": {"check_mse"},
    "recipe/linear": RECIPES,
    "models/names": RECIPES
    | ANALYSES
    | FROM_FILES
    | MEASURED
    | {"answer_questions", "check_mse", "choose_widths", "plot", "quantize_budget", "report"},
    "models/linears": PASSES | MEASURES | {"convert", "export", "measure_swaps"},
    "models/experts": PASSES | MEASURES | {"convert", "export", "measure_swaps", "check_study", "check_export"},
    "models/minicpm": {"convert"},
    "models/native": {"convert"},
    "models/notes": PASSES | MEASURES | {"convert", "export", "measure_swaps"},
    "models/quantised": {"convert"},
    "evaluation/loss_kernels": MEASURES | ANSWERS | {"measure_swaps"},
    "calibration/noisy": {"collect_noisy"},
    "comparison/numbers": PLOTS | COMPARISONS | {"check_mse", "check_study", "deep_dive", "synthetic_benchmark"},
    # before any job or after all: how a run ended, whether jobs ask for GPUs, how a configuration is given
    "workflow/outcome": set(),
    "workflow/gpus": set(),
    "workflow/own": set(),
    "workflow/paths": set(),
    "workflow/values": set(),
    "checkpoints/packed": CODES | {"choose_widths", "measure_swaps"},
    "report/page": {"report"},
    "comparison/pairs": TABLES | {"report"},
    "comparison/part_names": {
        "answer_questions",
        "measure_sensitivity",
        "measure_swaps",
        "report",
        "summarize_sensitivity",
    },
    "analysis/parts": {"measure_sensitivity", "measure_swaps"},
    "calibration/parts": RECIPES | {"collect_end_loss", "measure_error", "measure_heldout"},
    "comparison/pick": {"check_study", "pick", "plot", "report"},
    "calibration/preactivation_sums": PASSES,
    "analysis/preactivations": ANALYSES | FROM_FILES | {"measure_sensitivity", "measure_swaps"},
    "recipe/protection": RECIPES | {"check_mse", "synthetic_benchmark"},
    "methods/quantize": RECIPES,
    "report/figures/questions": {"plot"},
    "comparison/questions": {"answer_questions"},
    "calibration/reader": RECIPES,
    "recipe/ranges": RECIPES,
    "recipe/recipe": RECIPES | {"check_study", "quantize_budget", "check_best", "check_export"},
    "models/record": PASSES
    | ROUNDERS
    | MEASURES
    | ANALYSES
    | TEXTS
    | ANSWERS
    | {"choose_widths", "convert", "measure_error", "measure_swaps", "quantize_budget", "check_best", "check_export"},
    "evaluation/exact_error": {"measure_error", "measure_heldout"},
    "report/build": {"report"},
    "recipe/refine": RECIPES,
    "recipe/roundings/gptq": RECIPES,
    "recipe/roundings/greedy_flip": RECIPES,
    "recipe/roundings/nearest": RECIPES,
    # a new salience or rounding is tried without another pass over the text
    "recipe/saliences/l1": RECIPES | {"deep_dive"},
    "recipe/saliences/l2": RECIPES,
    "recipe/saliences/praq": RECIPES | {"deep_dive"},
    "recipe/scores/awq": RECIPES | {"check_mse", "deep_dive", "synthetic_benchmark"},
    "recipe/scores/praq": RECIPES | {"check_mse", "deep_dive", "synthetic_benchmark"},
    "workflow/recipe_schema": set(),
    "workflow/defaults": set(),
    "workflow/schema": set(),
    "recipe/search": RECIPES,
    "calibration/second_moments": PASSES
    | RECIPES
    | {"choose_widths", "measure_error", "measure_heldout", "quantize_budget"},
    "report/sections/questions": {"report"},
    "analysis/sensitivity": {"summarize_sensitivity"},
    "checkpoints/sizes": EVALUATIONS | {"export", "check_study", "check_export"},
    "models/gguf_pretokenizers": TEXTS | TOKENIZERS | {"check_study", "check_export"},
    "files/spool": TEXTS
    | ANSWERS
    | {"collect_end_loss", "convert", "export", "make_task", "plan", "check_study", "check_export"},
    "evaluation/trial": {"export"},
    "models/gguf_tokenizer": TEXTS | TOKENIZERS | {"check_study", "check_export"},
    "models/sentencepiece_model": TEXTS | ANSWERS | {"convert", "export", "make_task", "check_study", "check_export"},
    "models/tokenizers": TEXTS | ANSWERS | {"convert", "export", "make_task", "check_study", "check_export"},
    "models/rotary": PASSES | MEASURES | ANSWERS | {"export", "measure_swaps"},
    "data/text_files": TEXTS | {"evaluate_task", "make_task", "write_words"},
    "models/gguf_hyperparameters": TEXTS | TOKENIZERS | {"check_study", "check_export"},
    "models/sources": TEXTS | TOKENIZERS | {"check_study", "check_export"},
    "calibration/statistics": PASSES,
    "calibration/sums": PASSES,
    "calibration/shards": {"collect_shard", "collect_statistics"},
    "report/steps": {"report"},
    "checkpoints/stored": MEASURES
    | ANSWERS
    | MEASURED
    | {"choose_widths", "export", "quantize_budget", "check_study", "check_export"},
    "methods/sequential": {"quantize_with_model"},
    "calibration/streams": {"quantize_with_model"},
    "calibration/sum_kernels": PASSES,
    "analysis/synthetic": {"synthetic_benchmark"},
    "report/tables": {"report"},
    "report/texts": {"report"},
    "files/units": PASSES
    | MEASURES
    | TEXTS
    | ANSWERS
    | {
        "make_task",
        "check_study",
        "choose_widths",
        "convert",
        "describe",
        "export",
        "measure_swaps",
        "pick",
        "plan",
        "plot",
        "quantize_budget",
        "report",
    },
    "files/tensorfile": TENSORS | {"choose_widths", "measure_swaps"},
    "files/waits": ROUNDERS | {"quantize_budget"},
    "files/finite": ROUNDERS | {"quantize_budget"},
    "files/behind": TENSORS | {"choose_widths", "measure_swaps", "plan"},
    "files/checksums": TENSORS | {"choose_widths", "measure_swaps", "plan"},
    "data/overlap": TEXTS | ANSWERS | {"describe", "make_task", "plot", "report", "summarize"},
    "data/split": TEXTS | {"evaluate_task", "make_task", "write_words"},
    "data/texts": TEXTS | {"evaluate_task", "make_task", "write_words"},
    "data/tokens": PASSES
    | ROUNDERS
    | MEASURES
    | TEXTS
    | ANSWERS
    | {"choose_widths", "export", "make_task", "measure_error", "measure_swaps", "quantize_budget"},
    "data/wording": TEXTS | {"describe", "evaluate_task", "make_task", "write_words"},
    "workflow/shared_text": set(),
    "methods/tune": {"quantize_with_model"},
    "methods/with_model": {"quantize_with_model"},
    "workflow/tracking": set(),  # what it says is what counts
    "comparison/verdicts": {
        "answer_questions",
        "check_study",
        "pick",
        "plot",
        "plot_tasks",
        "report",
        "summarize",
        "summarize_tasks",
        "summarize_words",
    },
    "workflow/demands": {"check_best", "check_study"},
    "methods/refusals": {"check_study"},
    "methods/shared": RECIPES | {"check_study"},
    "methods/block_shards": {"quantize", "quantize_shard"},
    "methods/job": {"quantize", "quantize_shard", "quantize_with_model"},
    "methods/packing": RECIPES | {"check_study", "quantize_budget", "check_best", "check_export"},
    "checkpoints/gguf_sentencepiece": {"export", "check_study", "check_export"},
    "checkpoints/gguf_metadata": {"export", "check_study", "check_export"},
    "evaluation/sanity": EVALUATIONS,
    "calibration/material": PASSES,
    "files/pieces": TENSORS | {"choose_widths", "measure_swaps"},
    "models/unrolled": PASSES | MEASURES | {"convert", "export", "measure_swaps", "check_study", "check_export"},
    "evaluation/head": MEASURES | ANSWERS | {"export", "measure_swaps"},
    "models/loading": MEASURES | ANSWERS | {"measure_swaps", "quantize_with_model"},
    "records/evaluation": MEASURES
    | ANSWERS
    | {"export", "measure_swaps", "plot", "report", "summarize", "check_study", "check_export"},
    "records/method": CODES | MEASURED | {"choose_widths", "describe", "pick", "plot", "report", "summarize"},
    "records/model": PASSES
    | ROUNDERS
    | MEASURES
    | ANALYSES
    | TEXTS
    | ANSWERS
    | {
        "choose_widths",
        "convert",
        "export",
        "measure_error",
        "measure_swaps",
        "quantize_budget",
        "check_best",
        "check_export",
    },
    "comparison/learnt": {"answer_questions", "report", "summarize"},
    "comparison/measures": COMPARISONS | {"check_mse", "check_study", "synthetic_benchmark"},
    "comparison/prediction": {"answer_questions"},
    "comparison/table": {"summarize"},
    "comparison/text_answers": {"answer_questions", "report"},
    "comparison/tasks": {"answer_questions", "report", "summarize_tasks"},
    "data/embedded_tasks": {"make_task"},
    "data/lm_eval": {"make_task"},
    "data/lm_eval_names": set(),
    "data/task_items": {"check_texts", "evaluate_task", "make_task", "write_words"},
    "data/task_yaml": {"make_task"},
    "evaluation/items": {"evaluate_task"},
    "evaluation/tasks": {"evaluate_task"},
    "report/figures/tasks": {"plot_tasks"},
    "report/sections/tasks": {"report"},
    "workflow/environment": {"build_library", "build_lm_eval"},
    "comparison/twins": {"report", "summarize"},
    "calibration/expert_moments": PASSES,
    "files/naming": TENSORS | {"choose_widths", "measure_swaps"},
    "models/dequantised": {"convert"},
    "models/published": {"convert"},
    "methods/budgets/allocation": {"choose_widths", "quantize_budget"},
    "methods/budgets/mixed": {"quantize_budget"},
    "recipe/widths": TABLES
    | RECIPES
    | {"check_study", "choose_widths", "describe", "plan", "quantize_budget", "report", "check_best", "check_export"},
    "workflow/budgets": set(),
    "calibration/kept": {"quantize_with_model"},
    "checkpoints/gptq_layout": {"check_study", "quantize_library"},
    "methods/libraries/autoawq": {"check_study", "quantize_library"},
    "methods/libraries/autoround": {"check_study", "quantize_library"},
    "methods/libraries/llmcompressor": {"check_study", "quantize_library"},
    "methods/library": {"check_study", "quantize_library"},
    "methods/library_environment": {"check_study", "quantize_library"},
    "methods/library_shapes": {"check_study", "quantize_library"},
    "recipe/libraries": LIBRARIAN
    | TABLES
    | {"build_library", "describe", "plan", "report", "check_best", "check_export"},
    "evaluation/asked": {"evaluate_task", "write_words"},
    "evaluation/provenance": EVALUATIONS | {"evaluate_task", "write_words"},
    "comparison/mixing": {"answer_questions"},
    "checkpoints/export": {"export"},
    "checkpoints/fitting": {"export", "check_study", "check_export"},
    "checkpoints/formats/awq": {"export", "check_export", "check_study"},
    "checkpoints/formats/dense": {"export"},
    "checkpoints/formats/gguf": {"export", "check_study", "check_export"},
    "workflow/estimate": {"plan"},
    "workflow/needs": {"plan"},
    "workflow/rates": {"plan"},
    "workflow/shape": {"check_study", "plan"},
    "models/products": PASSES
    | READERS
    | ANSWERS
    | RECIPES
    | EVALUATIONS
    | {"choose_widths", "measure_swaps", "quantize_budget"},
    "evaluation/by_block": MEASURES | {"export", "measure_swaps"},
    "models/peek": {"plan"},
    "workflow/plan": {"plan"},
    "files/shards": QUANTIZERS | {"check_study", "convert", "export", "quantize_budget", "check_export"},
    "files/weight_names": CODES | {"choose_widths", "convert", "measure_swaps"},
    "workflow/weights": set(),
    "checkpoints/byte_codes": CODES | {"choose_widths", "measure_swaps"},
    "recipe/formats": TABLES | CODES | MEASURED | {"check_mse", "choose_widths", "describe", "plan", "report"},
    "recipe/numbers": CODES | {"check_mse", "choose_widths", "measure_swaps"},
    "methods/reconstruct": {"quantize_with_model"},
    "models/replay": {"quantize", "quantize_shard", "quantize_with_model"},
    "models/forward": MEASURES | ANSWERS | {"export", "measure_swaps"},
    "models/forward_kernels": MEASURES | ANSWERS | {"export", "measure_swaps"},
    "recipe/rounding_kernels": ROUNDERS,
    "recipe/triangles": {"quantize", "quantize_shard", "quantize_with_model"},
    "calibration/embedding_moments": RECIPES | {"choose_widths", "collect_end_loss", "quantize_budget"},
    "checkpoints/embeddings": RECIPES | {"check_study", "choose_widths", "quantize_budget", "check_export"},
    "checkpoints/embedding_codes": RECIPES
    | MEASURES
    | ANSWERS
    | MEASURED
    | {"check_study", "choose_widths", "export", "quantize_budget", "check_export"},
    "methods/embeddings": {"quantize", "quantize_shard", "quantize_with_model"},
    "comparison/place_answers": {"answer_questions"},
    "comparison/profiles": {"answer_questions", "summarize"},
    "comparison/task_answers": {"answer_questions"},
    "evaluation/profile": EVALUATIONS,
    "report/figures/profiles": {"plot"},
    "report/sections/changes": {"report"},
    "checkpoints/library_code": CODES | {"choose_widths", "measure_swaps"},
    "workflow/amounts": {"plan"},
    "comparison/words": {"report", "summarize_words"},
    "evaluation/words": {"write_words"},
    "report/sections/cells": {"report"},
    "workflow/room": set(),
    "methods/budgets/choice": {"choose_widths", "quantize_budget"},
    "methods/budgets/swaps": {"choose_widths", "measure_swaps", "quantize_budget"},
    "calibration/row_moments": {"collect_end_loss"},
    "recipe/row_feedback": {"quantize", "quantize_shard", "quantize_with_model"},
    "recipe/inverse": {"quantize", "quantize_shard", "quantize_with_model"},
    "recipe/column_kernels": ROUNDERS,
    "methods/budgets/job": {"choose_widths", "quantize_budget"},
    "methods/budgets/widths": {"quantize_with_model"},
    "models/importing": PASSES
    | MEASURES
    | TEXTS
    | ANSWERS
    | {"convert", "export", "make_task", "measure_swaps", "check_study", "check_export"},
    "workflow/codes": set(),
    "methods/kl_kernels": {"quantize_with_model"},
    "methods/kl_loss": {"quantize_with_model"},
    "methods/teacher": {"quantize_with_model"},
    "methods/fused": {"quantize_with_model"},
    "methods/insides": {"quantize_with_model"},
    "methods/weight_kernels": {"quantize_with_model"},
    "methods/source": ROUNDERS | {"choose_widths", "quantize_budget"},
    "checkpoints/around": QUANTIZERS | {"check_study", "choose_widths", "export", "quantize_budget"},
    "methods/form": RECIPES | {"quantize_budget"},
    "calibration/attention_moments": {"collect_attention"},
    "recipe/error_feedback": {"quantize", "quantize_shard", "quantize_with_model"},
    "data/held_out": {"check_texts"},
    "files/stage": {"quantize_with_model"},
    "methods/dense": {"check_best", "check_study", "check_export"},
    "data/file_size": TEXTS | ANSWERS | {"make_task"},
    "recipe/checks": RECIPES,
    "calibration/moment_sizes": PASSES,
    "workflow/moments": set(),
    "workflow/stamps": set(),
    "methods/exporting": {"check_export", "check_study"},
    "models/positions": ANSWERS | {"check_study", "check_texts", "make_task"},
    "models/reading": {"convert"},
}
