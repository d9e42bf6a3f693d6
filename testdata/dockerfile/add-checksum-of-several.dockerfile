FROM scratch
ADD --checksum=abcd https://a.b/c.git https://a.b/d /
