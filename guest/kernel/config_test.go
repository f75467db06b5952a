package kernel

import "testing"

func TestConfig_Value(t *testing.T) {
	c := Config("# CONFIG_OFF is not set\nCONFIG_A=y\nCONFIG_XA=m\nXCONFIG_B=y\nCONFIG_S=\"two words\"\r\nCONFIG_E=\"\"\nCONFIG_T=1\nCONFIG_T=2\nCONFIG_LAST=m")
	for name, want := range map[string]string{
		"A": "y", "CONFIG_A": "y", "XA": "m", "B": "", "OFF": "", "S": "two words", "E": "", "T": "2", "LAST": "m", "NONE": "", "": "",
	} {
		if got := c.Value(name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	if !c.Enabled("LAST") || c.BuiltIn("LAST") || !c.BuiltIn("A") || Config(nil).Enabled("A") {
		t.Error("Enabled and BuiltIn do not follow Value")
	}
}

// A value that holds an option's name is not that option.
func TestConfig_ValueInsideLine(t *testing.T) {
	c := Config("CONFIG_A=m\nCONFIG_CMDLINE=\"x CONFIG_A=y\"\n")
	if got := c.Value("A"); got != "m" {
		t.Errorf("A is %q", got)
	}
}
