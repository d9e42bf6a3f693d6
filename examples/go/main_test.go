package main

import (
	"testing"
	"time"
)

func TestTheTimeIsThatOfGreenwich(t *testing.T) {
	east := time.FixedZone("east", 3600)
	if got := now(time.Date(2026, 1, 1, 1, 2, 3, 0, east)); got != "It is 00:02:03 in Greenwich.\n" {
		t.Errorf("got %q", got)
	}
}
