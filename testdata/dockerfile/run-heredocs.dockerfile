FROM alpine
SHELL ["/bin/bash", "-c"]
RUN <<EOF
one
EOF
RUN <<-"EOF"
	#!/usr/bin/env python3
	print("$x")
	EOF
RUN cat <<A <<-B > /x
a
A
	b
	B
RUN --network=none <<script
two
lines
script
