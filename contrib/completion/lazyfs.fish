# Completion of lazyfs for fish. Belongs to a directory of $fish_complete_path.
# What there is to choose from, lazyfs says itself: see lazyfs/cli/complete.py.

function __lazyfs_complete
    set -l words (commandline --current-process --tokenize --cut-at-cursor)
    set -l word (commandline --current-token --cut-at-cursor)
    set -l option (string replace --regex -- '^(--[^=]*=)?.*' '$1' $word)
    set -l value (string replace --regex -- '^--[^=]*=' '' $word)
    set -l program (string replace --regex -- '^~' $HOME $words[1])
    for line in ($program __complete $words[2..] $word 2>/dev/null)
        switch $line
            case ':file*'
                printf '%s\n' $option(__fish_complete_path $value)
            case ':directory*'
                printf '%s\n' $option(__fish_complete_directories $value '')
            case '*'
                printf '%s\n' $line
        end
    end
end

complete --command lazyfs --no-files --arguments '(__lazyfs_complete)'
