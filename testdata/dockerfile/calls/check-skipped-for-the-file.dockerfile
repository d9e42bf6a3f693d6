# check=skip=UndefinedVar, LegacyKeyValueFormat
FROM scratch
COPY $a /
ENV A b
CMD x
