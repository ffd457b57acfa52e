# Completion of lazyfs for bash. Belongs to /usr/share/bash-completion/completions/lazyfs.
# What there is to choose from, lazyfs says itself: see lazyfs/cli/complete.py.

_lazyfs() {
    local piece=${COMP_WORDS[COMP_CWORD]} word before
    local -a words=() found
    # Bash has split words at = and : and replaces only the last piece.
    for word in "${COMP_WORDS[@]:1:COMP_CWORD}"; do
        if ((${#words[@]})) && [[ $word == [=:]* || ${words[-1]} == *[=:] ]]; then
            words[-1]+=$word
        else
            words+=("$word")
        fi
    done
    [[ $piece == [=:] ]] && piece=
    before=${words[-1]%"$piece"}
    COMPREPLY=()
    while IFS=$'\t' read -r word _; do
        case $word in
            :file | :directory)
                compopt -o filenames
                mapfile -t found < <(compgen -A "${word#:}" -- "$piece")
                COMPREPLY+=("${found[@]}")
                ;;
            *=)
                compopt -o nospace
                COMPREPLY+=("${word#"$before"}")
                ;;
            *)
                printf -v word %q "${word#"$before"}"
                COMPREPLY+=("$word")
                ;;
        esac
    done < <("${1/#\~/$HOME}" __complete "${words[@]}" 2>/dev/null)
}

complete -F _lazyfs lazyfs
