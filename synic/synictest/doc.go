// Package synictest is a machine for tests of package synic and of what is
// built on it: a clock that stands still until told, and processors of a guest
// that live in the test's process and do what Linux does with a SynIC.
//
// It has no VM. A VP's methods are what its code would do, its interrupts are
// bits that the test waits for.
package synictest
