FROM scratch
ENV name value
LABEL name a value
ENV name=value
LABEL name=value
