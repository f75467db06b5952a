package emuhost

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func testOutputs(t *testing.T) (*Outputs, string) {
	t.Helper()
	xfer := t.TempDir()
	h := &Host{Status: Status{Xfer: xfer}}
	return h.NewOutputs(), xfer
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestOutputs(t *testing.T) {
	o, xfer := testOutputs(t)
	dst := t.TempDir()
	fresh, old, never, dir := filepath.Join(dst, "fresh"), filepath.Join(dst, "old"), filepath.Join(dst, "never"), filepath.Join(dst, "dir")
	write(t, old, "old")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "was"), "there")
	in := map[string]string{}
	for _, d := range []string{fresh, old, never, dir} {
		p, err := o.Map(d)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(p, xfer+"/") || filepath.Base(p) != filepath.Base(d) {
			t.Errorf("%s is mapped to %s", d, p)
		}
		in[d] = p
	}
	if again, err := o.Map(fresh); err != nil || again != in[fresh] {
		t.Errorf("mapped again to %s, %v, before to %s", again, err, in[fresh])
	}
	if got := read(t, in[old]); got != "old" {
		t.Errorf("existing file inside is %q", got)
	}
	write(t, in[fresh], "new")
	write(t, in[fresh]+".1", "sibling")
	write(t, in[old], "changed")
	write(t, filepath.Join(in[dir], "more"), "here")
	if err := o.Finish(); err != nil {
		t.Fatal(err)
	}
	for p, want := range map[string]string{fresh: "new", fresh + ".1": "sibling", old: "changed", filepath.Join(dir, "was"): "there", filepath.Join(dir, "more"): "here"} {
		if got := read(t, p); got != want {
			t.Errorf("%s is %q, want %q", p, got, want)
		}
	}
	if _, err := os.Stat(never); !os.IsNotExist(err) {
		t.Errorf("%s: %v", never, err)
	}
	if es, err := os.ReadDir(xfer); err != nil || len(es) != 0 {
		t.Errorf("left in the exchange directory: %v, %v", es, err)
	}
	if err := o.Finish(); err != nil {
		t.Errorf("second Finish: %v", err)
	}
}

func TestOutputsLeftAlone(t *testing.T) {
	o, xfer := testOutputs(t)
	for _, p := range []string{"/dev/null", filepath.Join(xfer, "own")} {
		if got, err := o.Map(p); err != nil || got != p {
			t.Errorf("%s is mapped to %s, %v", p, got, err)
		}
	}
	if _, err := o.Map("/nonexistent/dir/file"); err == nil || !strings.Contains(err.Error(), "/nonexistent/dir") {
		t.Errorf("missing directory: %v", err)
	}
}

// TestOutputsRefuseLinks has a command make a link where its output should be: what the link names is not touched.
func TestOutputsRefuseLinks(t *testing.T) {
	o, _ := testOutputs(t)
	dst := filepath.Join(t.TempDir(), "out")
	p, err := o.Map(dst)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc/passwd", p); err != nil {
		t.Fatal(err)
	}
	if err := o.Finish(); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("got %v", err)
	}
	if _, err := os.Lstat(dst); !os.IsNotExist(err) {
		t.Errorf("%s: %v", dst, err)
	}
}

func TestMapTestArgs(t *testing.T) {
	dst := t.TempDir()
	for _, tc := range []struct {
		name     string
		in, want []string // DST stands for the directory, and for what it is mapped to
	}{
		{"none", []string{"x.test", "-test.v", "-test.run=X", "arg"}, []string{"x.test", "-test.v", "-test.run=X", "arg"}},
		{"profiles", []string{"x.test", "-test.coverprofile=DST/c", "--test.cpuprofile=DST/p"}, []string{"x.test", "-test.coverprofile=DST/c", "-test.cpuprofile=DST/p"}},
		{"empty", []string{"x.test", "-test.trace="}, []string{"x.test", "-test.trace="}},
		{"output directory", []string{"x.test", "-test.outputdir=DST", "-test.memprofile=m"}, []string{"x.test", "-test.outputdir=DST", "-test.memprofile=m"}},
		{"program", []string{"-test.trace=DST/t"}, []string{"-test.trace=DST/t"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			o, _ := testOutputs(t)
			in := make([]string, len(tc.in))
			for i, a := range tc.in {
				in[i] = strings.ReplaceAll(a, "DST", dst)
			}
			got, err := o.MapTestArgs(in)
			if err != nil {
				t.Fatal(err)
			}
			for i := range got {
				for _, f := range o.files {
					if got[i] != in[i] {
						got[i] = strings.Replace(got[i], f.inside, "DST"+strings.TrimPrefix(f.dest, dst), 1)
					}
				}
				got[i] = strings.ReplaceAll(got[i], dst, "DST")
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("arguments (-want +got):\n%s", diff)
			}
			mapped := 0
			for _, a := range tc.in[1:] {
				if strings.Contains(a, "DST") {
					mapped++
				}
			}
			if len(o.files) != mapped {
				t.Errorf("%d files are mapped, want %d", len(o.files), mapped)
			}
			if err := o.Finish(); err != nil {
				t.Error(err)
			}
		})
	}
}
