package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hvpost/hvpost/kvm/probe"
)

func doctorCommand() *cobra.Command {
	var asJSON bool
	var device string
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Say what this machine's KVM is worth and how to mend it",
		Long: `Doctor opens /dev/kvm and tells apart: missing, not permitted, no VMX or SVM
behind it, a software KVM that interprets guests, and a real one. It lists the
capabilities that hvpost needs and prints the commands that mend what is wrong.

Exit code 0 if Linux guests run here, 120 if not.`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			r := probe.Probe(device)
			if asJSON {
				enc := json.NewEncoder(os.Stdout)
				enc.SetIndent("", "  ")
				if err := enc.Encode(r); err != nil {
					return err
				}
			} else {
				fmt.Print(describe(&r))
			}
			if !r.OK() {
				return exitError(codeNoKVM)
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print all that was found as JSON")
	cmd.Flags().StringVar(&device, "kvm", "/dev/kvm", "the device")
	return cmd
}

// describe is the report for people.
func describe(r *probe.Report) string {
	var b strings.Builder
	line := func(name, format string, args ...any) {
		fmt.Fprintf(&b, "%-14s %s\n", name, fmt.Sprintf(format, args...))
	}
	line("device", "%s: %s", r.Path, r.State)
	if r.Reason != "" {
		line("", "%s", r.Reason)
	}
	line("host", "Linux %s, %s", r.Host.Kernel, r.Host.Model)
	var flags []string
	for _, f := range []struct {
		on   bool
		name string
	}{{r.Host.VMX, "vmx"}, {r.Host.SVM, "svm"}, {r.Host.Hypervisor, "itself a guest"}} {
		if f.on {
			flags = append(flags, f.name)
		}
	}
	if len(flags) == 0 {
		flags = []string{"neither vmx nor svm"}
	}
	line("processor", "%s", strings.Join(flags, ", "))
	if len(r.Host.Modules) > 0 {
		line("modules", "%s", strings.Join(r.Host.Modules, ", "))
	}
	if r.NsPerInstruction > 0 {
		line("speed", "%.2f ns per guest instruction", r.NsPerInstruction)
	}
	for _, c := range r.Capabilities {
		state := "yes"
		if !c.Have {
			state = "no"
			if c.Needed {
				state = "MISSING"
			}
		}
		line("capability", "%-32s %s", c.Name, state)
	}
	for _, i := range r.Instructions {
		state := "runs"
		if !i.Works {
			state = "does not run"
		}
		line("instruction", "%-32s %s", i.Name, state)
	}
	for i, f := range r.Fix {
		name := ""
		if i == 0 {
			name = "to mend it"
		}
		line(name, "%s", f)
	}
	return b.String()
}
