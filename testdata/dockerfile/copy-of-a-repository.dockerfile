FROM scratch
COPY git@a.b:c.git /
