FROM scratch
COPY a \

 b /
COPY a \
 # comments are fine
 b /
