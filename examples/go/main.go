// A server that tells the time; with -check it asks itself and exits, with -once it prints the time and exits.
package main

import (
	"flag"
	"fmt"
	"log"
	"net/http"
	"os"
	"time"
)

const address = "localhost:8080"

// now writes a time as the server tells it.
func now(at time.Time) string {
	return at.UTC().Format("It is 15:04:05 in Greenwich.\n")
}

func check() error {
	response, err := http.Get("http://" + address)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("the server answers %s", response.Status)
	}
	return nil
}

func main() {
	checking, once := flag.Bool("check", false, "ask the server"), flag.Bool("once", false, "print the time")
	flag.Parse()
	switch {
	case *checking:
		if err := check(); err != nil {
			log.Fatal(err)
		}
	case *once:
		fmt.Fprint(os.Stdout, now(time.Now()))
	default:
		http.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, now(time.Now())) })
		log.Fatal(http.ListenAndServe(":8080", nil))
	}
}
