# check=skip=JSONArgsRecommended,StageNameCasing;experimental=all
# odd
FROM alpine AS Odd
CMD x
# check=skip=WorkdirRelativePath
WORKDIR rel
ENV TOKEN=1
