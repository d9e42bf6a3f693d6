FROM scratch
ADD --checksum=sha256:00 https://a.b/c.git /
