package emuhost

import (
	"context"
	"fmt"
	"os"

	"github.com/hvpost/hvpost/kvm/emuhost/inside"
)

// Intercept takes over when this process is not meant to be the program its user called, but PID 1 of an emulated host
// or the daemon of one; then it does not return. It must be the first thing in main.
func Intercept() {
	if IsGuest() {
		GuestMain()
	}
	if _, ok := os.LookupEnv(serveVar); ok {
		if err := Serve(context.Background()); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
}

// IsGuest reports whether this process is PID 1 of an emulated host.
func IsGuest() bool { return inside.IsRole() }

// GuestMain is PID 1 of an emulated host. It does not return.
func GuestMain() { inside.Main() }
