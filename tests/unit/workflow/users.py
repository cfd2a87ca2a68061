"""Groups of scripts, and by hand every module of the library and whose jobs an edit of it makes again."""

from quant.recipe import choices, libraries
from quant.workflow import tracking

PASSES = {
    "collect_statistics",
    "collect_shard",
    "collect_noisy",
    "collect_jacobian",
    "collect_end_loss",
    "quantize_with_model",
    "check_mse",
}  # the model, block by block
RECIPES = {"quantize", "quantize_shard", "quantize_with_model"}
QUANTIZERS = RECIPES | {"quantize_library"}
LIBRARIAN = {"quantize_library", "check_study"}  # they know the libraries
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
    | ANALYSES
    | FROM_FILES
    | {"check_study", "collect_jacobian", "export", "measure_sensitivity"},
    "files/artifacts": OURS,
    "methods/block": RECIPES,
    "calibration/blocks": PASSES | MEASURES,
    "checkpoints/card": {"describe"},
    "recipe/choices": TABLES | {"plan", "describe", "report"},
    "recipe/context": {"check_study", "quantize", "quantize_library", "quantize_shard", "quantize_with_model"},
    "recipe/functions": RECIPES,
    "recipe/quantized": QUANTIZERS | {"check_study"},
    "calibration/channels": PASSES
    | ANALYSES
    | FROM_FILES
    | RECIPES
    | {"measure_error", "measure_heldout", "measure_sensitivity", "synthetic_benchmark"},
    "comparison/paired": TABLES
    | {
        "check_mse",
        "check_study",
        "pick",
        "plot",
        "plot_tasks",
        "report",
        "summarize_tasks",
        "summarize_words",
        "synthetic_benchmark",
    },
    "comparison/summary": {"plot", "report", "summarize"},
    "models/cards": PASSES
    | QUANTIZERS
    | MEASURES
    | {"plan", "check_study", "evaluate_task", "measure_error", "measure_heldout", "write_words"},
    "models/compute": PASSES
    | QUANTIZERS
    | MEASURES
    | {"plan", "check_study", "evaluate_task", "measure_error", "measure_heldout", "write_words"},
    "workflow/configuration": set(),  # of the Snakefile, whose rules pass on what it makes of config.yaml
    "models/convert": {"convert"},
    "checkpoints/coverage": QUANTIZERS | EVALUATIONS | {"check_study", "quantize_budget"},
    "models/depth": {"plan", "check_mse", "check_study", "deep_dive"},
    "comparison/correlation": {"answer_questions", "deep_dive", "report"},
    "files/csv_tables": TABLES
    | ANALYSES
    | FROM_FILES
    | {
        "check_mse",
        "describe",
        "measure_error",
        "measure_heldout",
        "pick",
        "plot",
        "plot_tasks",
        "quantize_budget",
        "report",
        "summarize_tasks",
        "summarize_words",
        "synthetic_benchmark",
    },
    "analysis/deep_dive": {"deep_dive"},
    "evaluation/divergence": MEASURES | {"evaluate_task", "write_words"},
    "errors": OURS,
    "evaluation/perplexity": MEASURES | {"evaluate_task", "write_words"},
    "evaluation/record": EVALUATIONS,
    "report/figures/study": {"plot"},
    "recipe/correction": {"quantize_with_model"},
    "recipe/fused": {"check_study", "quantize", "quantize_library", "quantize_shard", "quantize_with_model"},
    "checkpoints/gemm": {"check_study", "export", "quantize_library"},
    "checkpoints/gguf_file": {"export"},
    # a checkpoint is read by its grid
    "recipe/grids": READERS
    | QUANTIZERS
    | MEASURES
    | {"check_mse", "check_study", "evaluate_task", "quantize_budget", "write_words"},
    "calibration/end_loss": {"collect_end_loss"},
    "calibration/hidden": PASSES | MEASURES,
    "calibration/jacobian": {"collect_jacobian"},
    "workflow/job": OURS,
    "recipe/grid_kernels": {"check_study", "quantize", "quantize_library", "quantize_shard", "quantize_with_model"},
    "recipe/key": TABLES | {"plan", "build_library", "check_study", "describe", "quantize_library", "report"},
    "recipe/keys": TABLES | {"plan", "describe", "report"},
    "analysis/layer_mse": {"check_mse"},
    "recipe/linear": RECIPES,
    "models/names": RECIPES
    | ANALYSES
    | FROM_FILES
    | {"answer_questions", "check_mse", "measure_error", "measure_heldout", "measure_sensitivity", "plot", "report"},
    "models/linears": PASSES | MEASURES | {"convert"},
    "models/experts": PASSES | MEASURES | {"convert"},
    "models/minicpm": {"convert"},
    "models/native": {"convert"},
    "models/notes": PASSES | MEASURES | {"convert"},
    "models/quantised": {"convert"},
    "evaluation/loss_kernels": MEASURES | {"evaluate_task", "write_words"},
    "calibration/noisy": {"collect_noisy"},
    "comparison/numbers": TABLES
    | {
        "check_mse",
        "check_study",
        "deep_dive",
        "pick",
        "plot",
        "plot_tasks",
        "report",
        "summarize_tasks",
        "summarize_words",
        "synthetic_benchmark",
    },
    # before any job or after all: how a run ended, whether jobs ask for GPUs, how a configuration is given
    "workflow/outcome": set(),
    "workflow/gpus": set(),
    "workflow/own": set(),
    "workflow/paths": set(),
    "workflow/values": set(),
    "checkpoints/packed": READERS
    | QUANTIZERS
    | MEASURES
    | {"check_study", "evaluate_task", "quantize_budget", "write_words"},
    "report/page": {"report"},
    "comparison/pairs": TABLES | {"report"},
    "comparison/part_names": {"answer_questions", "measure_sensitivity", "report", "summarize_sensitivity"},
    "analysis/parts": {"measure_sensitivity"},
    "calibration/parts": RECIPES | {"collect_end_loss", "measure_error", "measure_heldout"},
    "comparison/pick": {"check_study", "pick", "plot", "report"},
    "calibration/preactivation_sums": PASSES,
    "analysis/preactivations": ANALYSES | FROM_FILES | {"measure_sensitivity"},
    "recipe/protection": RECIPES | {"check_mse", "synthetic_benchmark"},
    "methods/quantize": RECIPES,
    "report/figures/questions": {"plot"},
    "comparison/questions": {"answer_questions"},
    "calibration/reader": RECIPES,
    "recipe/ranges": RECIPES,
    "recipe/recipe": RECIPES | {"check_study", "quantize_budget"},
    "models/record": PASSES
    | QUANTIZERS
    | MEASURES
    | TEXTS
    | ANALYSES
    | {"check_study", "convert", "evaluate_task", "measure_error", "quantize_budget", "write_words"},
    "evaluation/exact_error": {"measure_error", "measure_heldout"},
    "report/build": {"report"},
    "recipe/refine": RECIPES,
    "recipe/refine_kernels": RECIPES,
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
    "calibration/second_moments": {
        "check_mse",
        "collect_end_loss",
        "collect_jacobian",
        "collect_noisy",
        "collect_shard",
        "collect_statistics",
        "measure_error",
        "measure_heldout",
        "quantize",
        "quantize_budget",
        "quantize_shard",
        "quantize_with_model",
    },
    "report/sections/questions": {"report"},
    "analysis/sensitivity": {"summarize_sensitivity"},
    "checkpoints/sizes": EVALUATIONS,
    "models/gguf_pretokenizers": TEXTS | {"plan", "convert", "evaluate_task", "export", "make_task", "write_words"},
    "models/gguf_tokenizer": TEXTS | {"plan", "convert", "evaluate_task", "export", "make_task", "write_words"},
    "models/sentencepiece_model": TEXTS | {"convert", "evaluate_task", "export", "make_task", "write_words"},
    "models/tokenizers": TEXTS | {"convert", "evaluate_task", "export", "make_task", "write_words"},
    "models/rotary": PASSES | MEASURES | {"evaluate_task", "write_words"},
    "data/text_files": TEXTS | {"evaluate_task", "make_task", "write_words"},
    "models/gguf_hyperparameters": TEXTS | {"plan", "convert", "evaluate_task", "export", "make_task", "write_words"},
    "models/sources": TEXTS | {"plan", "convert", "evaluate_task", "export", "make_task", "write_words"},
    "calibration/statistics": PASSES,
    "calibration/sums": PASSES,
    "calibration/shards": {"collect_shard", "collect_statistics"},
    "report/steps": {"report"},
    "checkpoints/stored": READERS | MEASURES | {"evaluate_task", "quantize_budget", "write_words"},
    "methods/sequential": {"quantize_with_model"},
    "calibration/streams": {"quantize_with_model"},
    "calibration/sum_kernels": PASSES,
    "analysis/synthetic": {"synthetic_benchmark"},
    "report/tables": {"report"},
    "report/texts": {"report"},
    "files/units": {
        "check_mse",
        "check_study",
        "collect_end_loss",
        "collect_jacobian",
        "collect_noisy",
        "collect_shard",
        "collect_statistics",
        "convert",
        "describe",
        "evaluate",
        "evaluate_original",
        "evaluate_original_shard",
        "evaluate_shard",
        "measure_sensitivity",
        "pick",
        "plan",
        "plot",
        "quantize_budget",
        "quantize_with_model",
        "report",
    },
    "files/tensorfile": PASSES
    | READERS
    | QUANTIZERS
    | TEXTS
    | ANALYSES
    | FROM_FILES
    | {
        "check_study",
        "convert",
        "evaluate_original",
        "evaluate_original_shard",
        "evaluate_task",
        "make_task",
        "quantize_budget",
        "synthetic_benchmark",
        "write_words",
    },
    "files/behind": PASSES
    | READERS
    | QUANTIZERS
    | TEXTS
    | ANALYSES
    | FROM_FILES
    | {
        "check_study",
        "convert",
        "evaluate_original",
        "evaluate_original_shard",
        "evaluate_task",
        "make_task",
        "quantize_budget",
        "synthetic_benchmark",
        "write_words",
    },
    "data/overlap": TEXTS | {"describe", "evaluate_task", "make_task", "plot", "report", "summarize", "write_words"},
    "data/split": TEXTS | {"evaluate_task", "make_task", "write_words"},
    "data/texts": TEXTS | {"evaluate_task", "make_task", "write_words"},
    "data/tokens": PASSES
    | QUANTIZERS
    | MEASURES
    | TEXTS
    | {"check_study", "evaluate_task", "make_task", "measure_error", "quantize_budget", "write_words"},
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
    "workflow/demands": set(),
    "methods/refusals": {"check_study"},
    "methods/shared": RECIPES | {"check_study"},
    "methods/block_shards": {"quantize", "quantize_shard"},
    "methods/job": {"quantize", "quantize_shard"},
    "methods/packing": RECIPES | {"check_study", "quantize_budget"},
    "checkpoints/gguf_sentencepiece": {"export"},
    "checkpoints/gguf_metadata": {"export"},
    "evaluation/sanity": EVALUATIONS,
    "calibration/material": PASSES,
    "files/pieces": PASSES
    | READERS
    | QUANTIZERS
    | TEXTS
    | ANALYSES
    | FROM_FILES
    | {
        "check_study",
        "convert",
        "evaluate_original",
        "evaluate_original_shard",
        "evaluate_task",
        "make_task",
        "quantize_budget",
        "synthetic_benchmark",
        "write_words",
    },
    "models/unrolled": PASSES | MEASURES | {"convert"},
    "evaluation/head": MEASURES | {"evaluate_task", "write_words"},
    "models/loading": MEASURES | {"evaluate_task", "quantize_with_model", "write_words"},
    "records/evaluation": MEASURES | {"evaluate_task", "plot", "report", "summarize", "write_words"},
    "records/method": QUANTIZERS
    | MEASURES
    | {
        "check_study",
        "describe",
        "evaluate_task",
        "measure_error",
        "measure_heldout",
        "plot",
        "quantize_budget",
        "report",
        "summarize",
        "write_words",
    },
    "records/model": PASSES
    | QUANTIZERS
    | MEASURES
    | TEXTS
    | ANALYSES
    | {"check_study", "convert", "evaluate_task", "measure_error", "quantize_budget", "write_words"},
    "comparison/learnt": {"answer_questions", "report", "summarize"},
    "comparison/measures": TABLES
    | {
        "check_mse",
        "check_study",
        "pick",
        "plot",
        "plot_tasks",
        "report",
        "summarize_tasks",
        "summarize_words",
        "synthetic_benchmark",
    },
    "comparison/prediction": {"answer_questions"},
    "comparison/table": {"summarize"},
    "comparison/text_answers": {"answer_questions", "report"},
    "comparison/tasks": {"answer_questions", "plot_tasks", "report", "summarize_tasks"},
    "data/embedded_tasks": {"make_task"},
    "data/lm_eval": {"make_task"},
    "data/task_items": {"check_texts", "evaluate_task", "make_task", "write_words"},
    "data/task_yaml": {"make_task"},
    "evaluation/items": {"evaluate_task"},
    "evaluation/tasks": {"evaluate_task"},
    "report/figures/tasks": {"plot_tasks"},
    "report/sections/tasks": {"report"},
    "workflow/environment": {"build_library", "build_lm_eval"},
    "comparison/twins": {"report", "summarize"},
    "calibration/expert_moments": PASSES,
    "files/naming": PASSES
    | READERS
    | QUANTIZERS
    | TEXTS
    | ANALYSES
    | FROM_FILES
    | {
        "check_study",
        "convert",
        "evaluate_original",
        "evaluate_original_shard",
        "evaluate_task",
        "make_task",
        "quantize_budget",
        "synthetic_benchmark",
        "write_words",
    },
    "models/dequantised": {"convert"},
    "models/published": {"convert"},
    "comparison/greedy": {"report", "summarize_words"},
    "evaluation/greedy": {"write_words"},
    "methods/allocation": {"quantize_budget"},
    "methods/mixed": {"quantize_budget"},
    "recipe/widths": TABLES | {"plan", "check_study", "describe", "quantize_budget", "report"},
    "report/sections/greedy": {"report"},
    "workflow/budgets": set(),
    "calibration/kept": {"quantize_with_model"},
    "checkpoints/gptq_layout": {"check_study", "quantize_library"},
    "methods/libraries/autoawq": {"check_study", "quantize_library"},
    "methods/libraries/autoround": {"check_study", "quantize_library"},
    "methods/libraries/llmcompressor": {"check_study", "quantize_library"},
    "methods/library": {"check_study", "quantize_library"},
    "methods/library_environment": {"check_study", "quantize_library"},
    "methods/results": {"check_study", "quantize_library"},
    "recipe/libraries": TABLES | {"plan", "build_library", "check_study", "describe", "quantize_library", "report"},
    "evaluation/asked": {"evaluate_task", "write_words"},
    "evaluation/provenance": EVALUATIONS | {"evaluate_task", "write_words"},
    "comparison/mixing": {"answer_questions"},
    "checkpoints/export": {"export"},
    "checkpoints/fitting": {"export"},
    "checkpoints/formats/awq": {"export"},
    "checkpoints/formats/dense": {"export"},
    "checkpoints/formats/gguf": {"export"},
    "workflow/estimate": {"plan"},
    "workflow/needs": {"plan"},
    "workflow/rates": {"plan"},
    "workflow/shape": {"check_study", "plan"},
    "models/products": {
        "check_mse",
        "collect_end_loss",
        "collect_jacobian",
        "collect_noisy",
        "collect_shard",
        "collect_statistics",
        "evaluate",
        "evaluate_original",
        "evaluate_original_shard",
        "evaluate_shard",
        "evaluate_task",
        "measure_error",
        "measure_heldout",
        "measure_sensitivity",
        "quantize",
        "quantize_budget",
        "quantize_shard",
        "quantize_with_model",
        "write_words",
    },
    "evaluation/by_block": MEASURES,
    "models/peek": {"plan"},
    "workflow/plan": {"plan"},
    "files/shards": QUANTIZERS | {"check_study", "convert", "export", "quantize_budget"},
    "files/weight_names": QUANTIZERS | {"check_study", "convert", "export", "quantize_budget"},
    "workflow/weights": set(),
    "checkpoints/byte_codes": {
        "check_study",
        "evaluate",
        "evaluate_original",
        "evaluate_original_shard",
        "evaluate_shard",
        "evaluate_task",
        "export",
        "measure_error",
        "measure_heldout",
        "measure_sensitivity",
        "quantize",
        "quantize_budget",
        "quantize_library",
        "quantize_shard",
        "quantize_with_model",
        "write_words",
    },
    "recipe/formats": {
        "answer_questions",
        "check_mse",
        "check_study",
        "describe",
        "evaluate",
        "evaluate_original",
        "evaluate_original_shard",
        "evaluate_shard",
        "evaluate_task",
        "export",
        "measure_error",
        "measure_heldout",
        "measure_sensitivity",
        "plan",
        "quantize",
        "quantize_budget",
        "quantize_library",
        "quantize_shard",
        "quantize_with_model",
        "report",
        "summarize",
        "summarize_sensitivity",
        "write_words",
    },
    "recipe/numbers": {
        "check_mse",
        "check_study",
        "evaluate",
        "evaluate_original",
        "evaluate_original_shard",
        "evaluate_shard",
        "evaluate_task",
        "export",
        "measure_error",
        "measure_heldout",
        "measure_sensitivity",
        "quantize",
        "quantize_budget",
        "quantize_library",
        "quantize_shard",
        "quantize_with_model",
        "write_words",
    },
    "methods/reconstruct": {"quantize_with_model"},
    "models/replay": {"quantize_with_model"},
    "models/forward": {
        "evaluate",
        "evaluate_original",
        "evaluate_original_shard",
        "evaluate_shard",
        "evaluate_task",
        "measure_sensitivity",
        "write_words",
    },
    "models/forward_kernels": {
        "evaluate",
        "evaluate_original",
        "evaluate_original_shard",
        "evaluate_shard",
        "evaluate_task",
        "measure_sensitivity",
        "write_words",
    },
    "recipe/rounding_kernels": {"check_study", "quantize", "quantize_library", "quantize_shard", "quantize_with_model"},
    "recipe/triangles": {"quantize", "quantize_shard", "quantize_with_model"},
    "calibration/vocabulary": {
        "collect_end_loss",
        "quantize",
        "quantize_budget",
        "quantize_shard",
        "quantize_with_model",
    },
    "checkpoints/ends": {"check_study", "quantize", "quantize_budget", "quantize_shard", "quantize_with_model"},
    "checkpoints/vocabulary": {
        "check_study",
        "evaluate",
        "evaluate_original",
        "evaluate_original_shard",
        "evaluate_shard",
        "evaluate_task",
        "export",
        "measure_error",
        "measure_heldout",
        "measure_sensitivity",
        "quantize",
        "quantize_budget",
        "quantize_shard",
        "quantize_with_model",
        "write_words",
    },
    "methods/vocabulary": {"quantize", "quantize_shard", "quantize_with_model"},
    "comparison/place_answers": {"answer_questions"},
    "comparison/profiles": {"answer_questions", "summarize"},
    "comparison/task_answers": {"answer_questions"},
    "evaluation/profile": {"evaluate", "evaluate_original", "evaluate_original_shard", "evaluate_shard"},
    "report/figures/profiles": {"plot"},
    "report/sections/changes": {"report"},
}
