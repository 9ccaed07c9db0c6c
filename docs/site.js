// Files have no server to fetch the pages of the answers from: answers are titles then, without excerpts.
if (location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
