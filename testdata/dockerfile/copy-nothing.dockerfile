FROM scratch
COPY $A $B
