# The validated configuration, and what several rules share.

SCHEMA = json.loads(Path(workflow.basedir, "rules/schemas/config.schema.json").read_text())
try:
    CONFIG = configuration.load(config, SCHEMA)
    configuration.check_files(CONFIG)
except InputError as error:
    raise WorkflowError(str(error)) from None

STUDY = CONFIG["study"]
METHODS = CONFIG["methods"]
# methods that failed, by model, where the study may do without them
MISSING = outcome.missing(STUDY, Path("results")) if STUDY["allow_missing"] else []
ABSENT = {(entry["model"], entry["method"]) for entry in MISSING}
THREADS = CONFIG["compute"]["threads"]
# what a job computes with; the number of threads is no reason to compute again
COMPUTE = {key: value for key, value in CONFIG["compute"].items() if key != "threads"}
FIRST_MODEL, FIRST_DATASET = STUDY["models"][0], STUDY["datasets"][0]
CARD_KEYS = ("base_model", "license", "caveat", "source")
code = tracking.code_of
model_files = configuration.model_files

# wildcard constraints: methods that are recipes, and those of a library of its own; (?!) matches nothing
RECIPES, LIBRARY_METHODS = (
    "|".join(re.escape(name) for name, recipe in METHODS.items() if ("algorithm" in recipe) == of_library) or "(?!)"
    for of_library in (False, True)
)

# the common calibration set, and the one of a method: results/{model}/calibration/n64-s42/
calibration_name = "n{n_calib}-s{seed}".format
COMMON_CALIBRATION = calibration_name(**{key: CONFIG["calibration"][key] for key in ("n_calib", "seed")})

# by key throughout, so that the order of a file's lines means nothing
in_order = lambda value: {key: in_order(value[key]) for key in sorted(value)} if isinstance(value, dict) else value

# memory or time of a job: as much, and on a retry twice, then three times as much
more = lambda amount: lambda wildcards, attempt: amount * attempt

# what the token ids of a calibration set are made by
CALIBRATION = {key: value for key, value in CONFIG["calibration"].items() if key != "allow_overlap"}
calibration_spec = lambda w: CALIBRATION | dict(zip(("n_calib", "seed"), map(int, re.findall(r"\d+", w.calibration))))
# every calibration set that the study reads
CALIBRATIONS = sorted(
    {
        COMMON_CALIBRATION,
        *(
            calibration_name(**METHODS[method])
            for method in STUDY["methods"]
            if keys.statistics_files(METHODS[method])
        ),
    }
)


wildcard_constraints:
    model="|".join(map(re.escape, CONFIG["models"])),
    method="|".join(map(re.escape, METHODS)),
    dataset="|".join(map(re.escape, CONFIG["datasets"])),
    calibration=r"n\d+-s\d+",
    noise_std=r"[0-9.e-]+",
    n_noise_samples=r"\d+",


localrules:
    all,
