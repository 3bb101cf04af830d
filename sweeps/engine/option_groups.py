"""In which groups --help and options.yaml show the options of a sweep, each with an example."""

from ali.arguments import Group

LOCATION_GROUPS: tuple[Group, ...] = (
    Group("common", "--name laptop", "name"),
    Group(
        "storage",
        "--name svhn --tracking-uri http://HEAD:5000",
        "output_dir storage_path tracking_uri",
    ),
)
OPTION_GROUPS: tuple[Group, ...] = (
    Group(
        "common",
        "--name first --num-trials 20 --epochs 30",
        "name data data_dir num_trials epochs width max_concurrent resume auto_resume",
    ),
    Group(
        "data",
        "--data folder --data-dir DIR --image-size 64",
        "image_size attribute modes train_size labels balanced draws draw eval_every",
    ),
    Group("network", "--model gan --batch-size 50", "model levels sigma batch_size precision"),
    Group(
        "search",
        "--name first --space space.toml --objective sample_diversity",
        "space objective direction sampler startup_trials grace_epochs reduction_factor race "
        "confirm confirm_seeds warm_start bn_with_z vary_weight_std vary_batch_size seed",
    ),
    Group(
        "resource",
        "--cpus-per-trial 4 --gpus-per-trial 0.5",
        "cpus_per_trial gpus_per_trial max_failures hang_seconds",
    ),
    Group(
        "storage",
        "--storage-path s3://BUCKET/runs --keep 5",
        "output_dir storage_path tracking_uri keep image_every front_page outage_seconds",
    ),
)
