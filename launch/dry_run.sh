# shellcheck shell=bash
# Sourced by the scripts here. `run CMD ARGS...` prints a command, as it could be pasted, then runs it; with DRY_RUN=1
# it only prints. `quoted ARGS...` prints arguments as one line that a shell reads back as the same arguments.

quoted() {
  local word line=""
  for word in "$@"; do
    case $word in
      "" | *[!A-Za-z0-9_./:=,@%+-]*) word="'$(printf '%s' "$word" | sed "s/'/'\\\\''/g")'" ;;
    esac
    line+="${line:+ }$word"
  done
  printf '%s' "$line"
}

run() {
  if [[ ${DRY_RUN:-0} = 1 ]]; then
    printf '%s\n' "$(quoted "$@")"
  else
    echo "+ $(quoted "$@")" >&2
    "$@"
  fi
}

# The comment at the head of a script is its --help.
usage() {
  sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
}
