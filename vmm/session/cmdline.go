package session

import "strings"

// defaultCmdline is what a test guest's kernel needs to hear, each word with
// its reason.
func defaultCmdline(verbose bool) []string {
	words := []string{
		"console=ttyS0",            // the kernel log
		"panic=-1",                 // a panic resets at once, which ends the run
		"reboot=a",                 // by the ACPI reset register
		"pci=off",                  // there is none; do not probe for it
		"8250.nr_uarts=2",          // there are two; do not probe for more
		"random.trust_cpu=1",       // no waiting for entropy
		"rcupdate.rcu_expedited=1", // grace periods cost boot time and nothing else here
		// The guest is thrown away after its command, and mitigations take a
		// good part of its boot; "-a mitigations=auto" has them back.
		"mitigations=off",
		"no_timer_check",    // no PIT behind IRQ 0
		"cryptomgr.notests", // the kernel's crypto is not what is tested
	}
	if !verbose {
		words = append(words, "quiet")
	}
	return words
}

// cmdline puts the kernel command line together.
func (p *Plan) cmdline(link string) string {
	words := strings.Fields(p.opts.Cmdline)
	if p.opts.Cmdline == "" {
		words = defaultCmdline(p.opts.Verbose)
	}
	words = append(words, p.opts.Append...)
	if link != "" {
		words = append(words, link)
	}
	return strings.Join(words, " ")
}
