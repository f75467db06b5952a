// Hvpost boots guests on KVM in a machine that speaks Hyper-V, runs commands
// in them, and reports what became of it.
//
// The same binary is the guest's init, its userland, and the init of the
// emulated host; which of them it is follows from how it was started.
package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hvpost/hvpost/guest/agent"
	"github.com/hvpost/hvpost/guest/userland"
	"github.com/hvpost/hvpost/kvm/emuhost"
)

// Exit codes of the hvpost command beside those of the guest's own command.
const (
	codeSkipped     = 77  // the host cannot, and --skip-unsupported was given
	codeNoKVM       = 120 // no usable KVM
	codePanic       = 121 // the guest kernel panicked
	codeTripleFault = 122 // triple fault, or KVM could not go on
	codeNoResult    = 123 // reset, or power-off without a result
	codeTimeout     = 124
	codeError       = 125 // of the monitor, or of its use
	codeCannotRun   = 126 // the guest could not execute the command
	codeNotFound    = 127 // the guest does not have the command
)

// started is as close to the start of the process as Go code gets.
var started = time.Now()

func main() {
	emuhost.Intercept()
	if agent.IsInit() {
		agent.Main()
		return
	}
	if name := filepath.Base(os.Args[0]); name != "hvpost" {
		if code, ok := userland.Main(name, os.Args[1:]); ok {
			os.Exit(code)
		}
	}
	os.Exit(execute())
}

// exitError carries an exit code out of a subcommand whose message, if any,
// was printed already.
type exitError int

func (e exitError) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

func execute() int {
	err := rootCommand().Execute()
	var code exitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &code):
		return int(code)
	}
	complain(err)
	return codeError
}

// quiet drops what say says. Errors of hvpost itself are not said but
// complained of: a failure without a cause would be of use to nobody.
var quiet bool

// say prints one line for the user on stderr.
func say(format string, args ...any) {
	if !quiet {
		fmt.Fprintf(os.Stderr, "hvpost: "+format+"\n", args...)
	}
}

// complain prints an error.
func complain(err error) {
	fmt.Fprintf(os.Stderr, "hvpost: %s\n", oneLine(err))
}

// oneLine is the text of an error, whatever it is made of.
func oneLine(err error) string {
	var parts []string
	for l := range strings.Lines(err.Error()) {
		if l = strings.TrimSpace(l); l != "" {
			parts = append(parts, l)
		}
	}
	return strings.Join(parts, "; ")
}

func rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:           "hvpost",
		Short:         "Boot test guests in a KVM machine that speaks Hyper-V",
		Long:          "hvpost boots a kernel in a KVM machine that speaks Hyper-V (CPUID, synthetic MSRs,\nSynIC, hypercalls, VMBus), runs a command in it and returns its exit code.",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.AddCommand(runCommand(), doctorCommand(), kernelCommand(), hostCommand(), versionCommand())
	return root
}
