"""The command line.

main        how every verb begins and ends: errors, exit codes, Ctrl-C
commands    the verbs, with options declaring their options
write (with story, page), info, prepare, train, evaluate
            what each verb does
settings, progress, memory
            what several of them need
"""
