FROM scratch
# check=skip=UndefinedVar
COPY $a /
COPY $b /
# check=skip=all
ENV A b
