# The validated configuration, and what several rules share.

SCHEMA = json.loads((ROOT / "rules/schemas/config.schema.json").read_text())
CONFIG_FILES += [] if IS_MODULE else workflow.overwrite_configfiles
if IS_MODULE:  # its configuration says what to change, as an experiment's does
    update_config(DEFAULT := load_configfile(CONFIG_FILES[0]), config)
    config = DEFAULT
try:
    paths.check_place(Path())
    for path in (ROOT, *workflow.overwrite_configfiles):
        paths.check_braces(path)
    for path in CONFIG_FILES:
        values.check_repeated(Path(path))
    WRITTEN = values.typed(config, {} if IS_MODULE else workflow.config_settings.config, SCHEMA)
    READ = functools.cache(load_configfile)
    WRITTEN = paths.anchored(values.added_up(WRITTEN, CONFIG_FILES, READ), CONFIG_FILES, READ)
    CONFIG = configuration.load(paths.named_texts(WRITTEN), SCHEMA)
    configuration.check_files(CONFIG)
except InputError as error:
    raise WorkflowError(str(error)) from None
except OSError as error:
    raise WorkflowError(f"{error.filename}: cannot be read ({error.strerror}); mend that and run again") from None

STUDY, WORDS = CONFIG["study"], CONFIG["words"]
METHODS = CONFIG["methods"]
# methods that failed, by model, where the study may do without them
MISSING = outcome.missing(STUDY, Path("results"), WORDS["task"] is not None) if STUDY["allow_missing"] else []
ABSENT = {(entry["model"], entry["method"]) for entry in MISSING}
# the tasks that are asked or written on
ASKED = list(dict.fromkeys([*STUDY["tasks"], *([WORDS["task"]] if WORDS["task"] else [])]))
# in the order of their colours, by the study first: of what it runs, twelve methods have colours of their own
COLOURED = list(dict.fromkeys([*STUDY["methods"], *sorted(METHODS)]))
# of the jobs on this host one a card, unless --resources or a profile says otherwise
if workflow.resource_settings.nodes is None and gpus.here() and "gpu" not in workflow.global_resources:
    workflow.register_resource("gpu", gpus.here())
THREADS = gpus.threads(CONFIG["compute"]["threads"], workflow.resource_settings.cores, workflow.global_resources)
# every checkpoint's weights: one file, or the index of shards where a model of the study may be larger than one
WEIGHTS = weights.file_name({name: CONFIG["models"][name]["source"] for name in STUDY["models"]})
# `auto` is of this host: a job that a cluster runs is told its own GPUs as the limit, and would find another number
LIMITS = workflow.global_resources if workflow.is_main_process and workflow.resource_settings.nodes is None else {}
SHARDS = gpus.shards(CONFIG["compute"]["shards"], LIMITS)
# a file of each shard, or none where there is one pass
in_shards = lambda file: expand(file, shard=range(SHARDS), shards=SHARDS, allow_missing=True) if SHARDS > 1 else []
# a recipe that draws random numbers draws them for one block after another
splits = lambda method: SHARDS > 1 and not keys.draws(METHODS[method])
PAIRED_THREADS = gpus.paired(THREADS, workflow.resource_settings.cores)
# of a method whose GGUF file stands in its checkpoint's place: that, and the record beside it
gguf_of = lambda w: (
    {
        "gguf": f"results/{w.model}/{w.method}/export/gguf/model.gguf",
        "exported": f"results/{w.model}/{w.method}/export/gguf/export.json",
    }
    if w.method in STUDY["gguf"]
    else {}
)
# what a job computes with; the number of threads is no reason to compute again
COMPUTE = {key: value for key, value in CONFIG["compute"].items() if key not in ("threads", "shards")}
FIRST_MODEL, FIRST_DATASET = STUDY["models"][0], STUDY["datasets"][0]
# of every interval and p; which measure verdicts rest on is none of it
COMPARISON = {key: CONFIG["comparison"][key] for key in ("resamples", "seed")}
CARD_KEYS = ("base_model", "license", "caveat", "source")
code = tracking.code_of
model_files = configuration.model_files

# wildcard constraints: methods that are recipes, those that run the model, those of a library of its own, and those that
# are put together from others; (?!) matches nothing
RECIPES, MODEL_RECIPES, LIBRARY_METHODS, BUDGETS = (
    "|".join(re.escape(name) for name, recipe in METHODS.items() if keys.way_of(recipe) == way) or "(?!)"
    for way in ("weights", "model", "library", "candidates")
)

# the common calibration set, and the one of a method: results/{model}/calibration/n64-s42/
calibration_name = "n{n_calib}-s{seed}".format
COMMON_CALIBRATION = calibration_name(**{key: CONFIG["calibration"][key] for key in ("n_calib", "seed")})

# by key throughout, so that the order of a file's lines means nothing
in_order = lambda value: {key: in_order(value[key]) for key in sorted(value)} if isinstance(value, dict) else value

# GPUs of a job that can use one. A dry run is not told its executor, but only a cluster has a limit of jobs
on_cluster = lambda: workflow.non_local_exec or (workflow.dryrun and workflow.resource_settings.nodes is not None)
GPU = lambda wildcards: gpus.wanted(COMPUTE["device"], on_cluster())
# of one that only puts together what shards leave, none
GPU_IF_WHOLE = lambda wildcards: 0 if SHARDS > 1 else GPU(wildcards)

# memory, time and disk of each job, by its rule and the size of its model: asked once more when its inputs are there, and
# on a retry twice, then three times as much
NEEDS = needs.resources(CONFIG, lambda: bool(GPU(None)))
# priority of jobs that nothing waits for but the report: less than 1
LONGEST_FIRST = needs.longest_first(CONFIG, lambda: bool(GPU(None)))

CHOICE_KEYS = SCHEMA["properties"]["choose"]["properties"]
DEMANDS = demands.demands(CONFIG, {key: CHOICE_KEYS[key]["default"] for key in demands.LIMITS})
# what results/best is taken from
OF_BEST = {
    "storage": CONFIG["choose"]["storage"],
    "gguf": STUDY["gguf"],
    "recipes": {name: METHODS[name] for name in STUDY["methods"] if keys.way_of(METHODS[name]) != "library"},
}
# what knows the libraries of the study
DEMANDED_MODULES = tuple(
    sorted({module for recipe in DEMANDS["library"].values() for module in choices.modules(recipe)})
)
DEFAULT_COUNTS = defaults.default_counts(SCHEMA, ROOT / "config.yaml")

CALIBRATION_FILES = [
    file for text in shared_text.calibration_texts(CONFIG["calibration"]) for file in text.get("files", [])
]
# what the token ids of a calibration set are made by
CALIBRATION = {k: value for k, value in CONFIG["calibration"].items() if k != "allow_overlap"}
# how second moments are kept, plain ones in which type; none: until the study's jobs have read them
STORE = CONFIG["moments"]["store"]
KEEPING = CONFIG["moments"] | {"store": "float32" if STORE == "none" else STORE}
calibration_spec = lambda w: CALIBRATION | dict(zip(("n_calib", "seed"), map(int, re.findall(r"\d+", w.calibration))))
# every calibration set that the study reads
CALIBRATIONS = sorted(
    {
        COMMON_CALIBRATION,
        *(
            calibration_name(**METHODS[method])
            for method in STUDY["methods"]
            if keys.calibration_files(METHODS[method])
        ),
    }
)

# methods of the study that tune, by calibration set
TUNED = {
    name: tuned
    for name in CALIBRATIONS
    if (tuned := [m for m in STUDY["methods"] if METHODS[m].get("tune") and calibration_name(**METHODS[m]) == name])
}

# the end loss's moments where a method of the study reads those of the common calibration set, None elsewhere
END_LOSS = next(
    (
        file
        for method in STUDY["methods"]
        for file in keys.statistics_files(METHODS[method]).values()
        if re.match(r"end_loss-\d", Path(file).name) and calibration_name(**METHODS[method]) == COMMON_CALIBRATION
    ),
    None,
)


wildcard_constraints:
    model="|".join(map(re.escape, CONFIG["models"])),
    method="|".join(map(re.escape, METHODS)),
    dataset="|".join(map(re.escape, CONFIG["datasets"])),
    task="|".join(map(re.escape, CONFIG["tasks"])) or "(?!)",
    calibration=r"n\d+-s\d+",
    noise_std=r"[0-9.e-]+",
    n_noise_samples=r"\d+",
    sections=r"\d+",
    sequences=r"\d+",
    shard=r"\d+",
    shards=r"\d+",


localrules:
    all,
