FROM scratch
COPY ../../a /b/./c /d/
COPY *.go dir/sub? [ab] e\*f /w/
COPY dir/ /dir
