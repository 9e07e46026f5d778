"""The formats that rows come in. A module per format knows how to look through a file once, and to read some rows."""
