from scratch
env a b
cmd x
cmd y
