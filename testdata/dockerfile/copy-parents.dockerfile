FROM scratch
COPY --parents a/b/c d/**/e.txt /x/
COPY --parents ./p/./q/r* /y/
COPY --parents --exclude=*.tmp --exclude=!keep.tmp /abs/./rel /z
