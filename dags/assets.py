"""What DAGs tell each other of: an Airflow Asset changes, and the DAGs that are scheduled on it run."""

from airflow.sdk import Asset, AssetAlias

CORPUS = Asset("cslm-corpus", uri="cslm://corpus")
"""The corpora: who puts new shards into one tells Airflow so, and `cslm_retrain` looks at them."""
CANDIDATE = Asset("cslm-candidate", uri="cslm://registry/candidate")
"""The registered version with alias `candidate`: `cslm_train` makes it, `cslm_promote` judges it."""
REGISTERED = AssetAlias("cslm-registered")
"""Changes CANDIDATE only if the version that was registered has not been judged yet."""
