# check=skip=StageNameCase
FROM alpine
