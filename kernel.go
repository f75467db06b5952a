package main

import (
	"fmt"
	"os"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/hvpost/hvpost/guest/kernel"
	"github.com/hvpost/hvpost/vmm/session"
)

func kernelCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "kernel",
		Short: "Fetch, list and remove cached kernels",
	}
	cmd.AddCommand(
		&cobra.Command{
			Use:     "fetch KERNEL ...",
			Short:   "Download kernels into the cache and unpack them",
			Long:    "Fetch downloads kernels with the system's own package tool and unpacks them into\nthe cache; nothing is installed. A kernel that is in the cache already is left\nas it is.",
			Example: "  hvpost kernel fetch debian:6.12 debian:6.1",
			Args:    cobra.MinimumNArgs(1),
			RunE: func(cmd *cobra.Command, specs []string) error {
				o := session.KernelOptions()
				if !quiet {
					o.Progress = os.Stderr
				}
				for _, spec := range specs {
					k, err := kernel.Fetch(cmd.Context(), spec, o)
					if err != nil {
						return err
					}
					fmt.Printf("%s\t%s\n", k.Name, k.Release)
				}
				return nil
			},
		},
		&cobra.Command{
			Use:   "list",
			Short: "List the cached kernels",
			Args:  cobra.NoArgs,
			RunE: func(*cobra.Command, []string) error {
				entries, err := kernel.List(session.KernelOptions())
				if err != nil {
					return err
				}
				w := tabwriter.NewWriter(os.Stdout, 0, 8, 2, ' ', 0)
				for _, e := range entries {
					fmt.Fprintf(w, "%s\t%s\t%d MiB\t%s\n", e.Name, e.Release, e.Size>>20, e.Source)
				}
				return w.Flush()
			},
		},
		&cobra.Command{
			Use:   "path [KERNEL]",
			Short: "Print where a kernel lies: image, unpacked image, modules",
			Args:  cobra.MaximumNArgs(1),
			RunE: func(cmd *cobra.Command, args []string) error {
				var spec string
				if len(args) > 0 {
					spec = args[0]
				}
				k, err := kernel.Resolve(cmd.Context(), spec, session.KernelOptions())
				if err != nil {
					return err
				}
				fmt.Printf("release\t%s\nimage\t%s\nvmlinux\t%s\nmodules\t%s\nsource\t%s\n",
					k.Release, k.Image, k.Vmlinux, k.ModuleDir, k.Source)
				return nil
			},
		},
		&cobra.Command{
			Use:   "rm NAME ...",
			Short: "Remove kernels from the cache",
			Args:  cobra.MinimumNArgs(1),
			RunE: func(_ *cobra.Command, names []string) error {
				for _, n := range names {
					if err := kernel.Remove(n, session.KernelOptions()); err != nil {
						return err
					}
				}
				return nil
			},
		},
	)
	return cmd
}
