# Sourced by the recipes for many machines: what they have in common.

SCALE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
. "$SCALE/../pretraining/common.sh"

# join_shards FOLDER: the shards in it as fairseq wants them, a:b:c; data that is not sharded as it
# is.
join_shards() {
    local shards=("$1"/*/dict.txt)
    if [ -f "$1/dict.txt" ]; then
        echo "$1"
    else
        [ -f "${shards[0]}" ] || fail "$1 holds no shards: make them with prepare_shards.sh"
        shards=("${shards[@]%/dict.txt}")
        (IFS=:; echo "${shards[*]}")
    fi
}

# recipe_named NAME: the script of that recipe.
recipe_named() {
    local script="$SCALE/../pretraining/$1.sh"
    case "$1" in
        from_scratch_base | continual_base | continual_large) echo "$script" ;;
        *) fail "$1: choose from_scratch_base, continual_base or continual_large" ;;
    esac
}
